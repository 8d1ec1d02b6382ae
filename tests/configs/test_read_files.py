"""Files that nobody meant well with are refused within a second, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import RECIPES, load_config
from configs.read_files import parse_json, read_yaml

BOMB = "\n".join(
    ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "key 'seed' is given twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "key 'epochs' is given twice"),
        ("seed: " + "9" * 5000, "not a readable YAML file"),
        ("model: &a\n  kwargs: *a\n", "contains itself"),
        ("name: &a [*a]\n", "contains itself"),
        ("name: " + "[" * 900 + "]" * 900, "nested too deeply"),
        ("name: " + "[" * 100_000, "not a readable YAML file"),
        (BOMB, "unfold to too many values"),
        ("name: !!python/object/apply:os.system ['true']", "not a readable YAML file"),
        ("\x00", "not a readable YAML file"),
    ],
)
def test_a_hostile_config_is_refused_with_its_file(
    content: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        load_config([f"--config={path}"], prog="", description="")
    assert str(path) in str(refused.value)
    assert reason in str(refused.value)


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(InputError, match="more than 4 MiB"):
        read_yaml(path)


def test_what_people_write_is_read_as_before(tmp_path: Path) -> None:
    import yaml

    for recipe in RECIPES.glob("**/*.yaml"):
        assert read_yaml(recipe) == yaml.safe_load(recipe.read_text())
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2, y: *a}\n1: one\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 2, "y": {"x": 1}}, 1: "one"}


def test_json_that_is_nested_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
