"""A run directory is data: what it names by import path runs only if it is trusted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from configs.errors import InputError
from launch import evaluate, export, predict
from tests.support.odd_runs import run as train_odd

MAIN: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "evaluate": (evaluate.main, ["--mistakes=0"]),
    "predict": (predict.main, ["x.npy"]),
    "export": (export.main, ["--format=safetensors", "--output=x.safetensors"]),
}


@pytest.fixture
def given(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of a run directory, with a module beside its config that says if it is imported."""
    folder = Path(shutil.copytree(trained_run, tmp_path / "given", symlinks=True))
    (folder / "hostile.py").write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w').close()\n")
    return folder


def rewrite(folder: Path, **keys: object) -> None:
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for key, value in keys.items():
        group, _, name = key.partition("_")
        content[group][name] = value
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("command", MAIN)
@pytest.mark.parametrize("model", ["hostile:Net", "subprocess:getoutput"])
def test_a_model_by_import_path_is_refused_before_it_is_imported(
    command: str, model: str, given: Path, tmp_path: Path
) -> None:
    rewrite(given, model_name=model, model_kwargs={"cmd": f"touch {tmp_path / 'it_ran'}"})
    main, options = MAIN[command]
    before = list(sys.path)
    with pytest.raises(InputError, match=rf"model\.name in .*given '{model}'.*--trust_code"):
        main([str(given), *options])
    assert not (tmp_path / "it_ran").exists()
    assert sys.path == before
    assert "hostile" not in sys.modules


@pytest.mark.parametrize(
    "keys",
    [
        {"data_dataset": "hostile:build"},
        {"data_dataset": "image_folder", "data_kwargs": {"augment": [{"hostile:Jitter": {}}]}},
    ],
)
def test_data_by_import_path_are_refused_where_they_would_be_read(
    keys: dict[str, object], given: Path, tmp_path: Path
) -> None:
    """Law: by evaluate, unless the user names others; predict reads none."""
    rewrite(given, **keys)
    with pytest.raises(InputError, match=r"in .*given 'hostile:.*--trust_code"):
        evaluate.main([str(given), "--mistakes=0"])
    assert not (tmp_path / "it_ran").exists()
    (given / "model.json").unlink()
    if "augment" not in str(keys):
        with pytest.raises(InputError, match=r"data\.dataset in .*given 'hostile:build'"):
            predict.main([str(given), "x.npy"])
    assert not (tmp_path / "it_ran").exists()


def test_a_directory_that_is_trusted_is_used(tmp_path: Path) -> None:
    folder = train_odd(tmp_path, "Base")
    with pytest.raises(InputError, match=r"model\.name in .*odd_networks:Base"):
        evaluate.main([str(folder), "--mistakes=0"])
    assert evaluate.main([str(folder), "--mistakes=0", "--trust_code"]) == 0


def test_what_the_user_names_is_the_users(trained_run: Path) -> None:
    """Law: a data set that is given on the command line is no stranger's."""
    with pytest.raises(InputError, match="an importable module"):
        evaluate.main([str(trained_run), "--data.dataset=no_such_module:build"])
