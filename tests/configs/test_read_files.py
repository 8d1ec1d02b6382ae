"""Files that nobody meant well with are refused within a second, by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.errors import InputError
from configs.load import RECIPES, load_config
from configs.read_files import parse_json, read_json, read_yaml

BOMB = "\n".join(
    ["l0: &l0 [x, x, x, x, x, x, x, x, x]"]
    + [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
)

MERGES = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
)
CHAIN = "\n".join(["l0: &l0 [x]"] + [f"l{n}: &l{n} [*l{n - 1}]" for n in range(1, 900)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("seed: 1\nname: a\nseed: 2\n", "key 'seed' is given twice in line 3"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "key 'epochs' is given twice"),
        ("name: a\nseed: " + "9" * 5000, "a number of 5000 digits in line 2"),
        ("seed: 1" + ":1" * 50_000, "a number of 100001 digits in line 1"),
        ("seed: !!timestamp x", "in line 1"),
        ("name: 2001-99-99", "in line 1"),
        ("name: [" + "1, " * 30_000 + "]", "more than 20000 values"),
        (MERGES, "unfold to too many values"),
        (CHAIN, "nested too deeply"),
        ("model: &a\n  kwargs: *a\n", "contains itself"),
        ("name: &a [*a]\n", "contains itself"),
        ("name: " + "[" * 900 + "]" * 900, "nested too deeply"),
        ("name: " + "[" * 100_000, "nested too deeply in line 1"),
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
    with pytest.raises(InputError, match="more than 524,288 bytes"):
        read_yaml(path)


def test_what_people_write_is_read_as_before(tmp_path: Path) -> None:
    import yaml

    for recipe in RECIPES.glob("**/*.yaml"):
        assert read_yaml(recipe) == yaml.safe_load(recipe.read_text())
    path = tmp_path / "x.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2, y: *a}\n1: one\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 2, "y": {"x": 1}}, 1: "one"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 900 + "]" * 900, "nested too deeply"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice"),
        ("9" * 5000, "digits"),
        ("\x00", "Expecting value"),
    ],
)
def test_hostile_json_is_refused_with_its_file(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as refused:
        read_json(path)
    assert str(path) in str(refused.value)


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="no plain file"):
            read_yaml(path)
        with pytest.raises(InputError, match="no plain file"):
            read_json(path)
