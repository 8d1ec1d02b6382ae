"""A run directory is data: whatever its config names, none of its author's code runs unasked."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from configs.errors import InputError
from configs.given import PREFIX
from configs.load import load_config
from configs.trust import leads_to_code
from tests.support.data_sets import make_tree
from tests.support.processes import ROOT, launch
from trainer.networks.from_timm import timm_model

CODE = "import pathlib; pathlib.Path({mark!r}).touch()\ndef harm(*a, **k): ...\n"
KEYS = {
    "model": {"name": "harmful:harm"},
    "data": {"dataset": "harmful:harm"},
    "model forward": {"forward": "harmful:harm"},
    "data collate": {"collate": "harmful:harm"},
    "data order": {"order": "harmful:harm"},
    "logging hook": {"hook": "harmful:harm"},
    "data augment": {
        "dataset": "image_folder",
        "kwargs": {"augment": [{"harmful:harm": {}}]},
        "root": "pictures",
    },
    "task": {"name": "harmful:harm"},
    "task loss": {"loss": "harmful:harm"},
    "task metrics": {"metrics": ["harmful:harm"]},
    "optimizer": {"name": "harmful:harm"},
    "optimizer groups": {"groups": "harmful:harm"},
    "schedule": {"name": "harmful:harm"},
    "schedule lambda": {"name": "LambdaLR", "kwargs": {"lr_lambda": "harmful:harm"}},
    "schedule list": {
        "name": "SequentialLR",
        "kwargs": {"schedulers": [{"name": "harmful:harm"}], "milestones": []},
    },
}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that is there when the stranger's code has run."""
    return tmp_path / "it_ran"


@pytest.fixture
def run(
    trained_run: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A run that came with a module beside its config, and the user stands in its folder."""
    folder = Path(shutil.copytree(trained_run, tmp_path / "run", symlinks=True))
    (folder / "harmful.py").write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("harmful", None)


@pytest.mark.parametrize("value", ["mine:Net", [{"mine.parts:Turn": {}}], {"loss": "mine:loss"}])
def test_what_leads_to_code_is_known_before_it_is_refused(value: object) -> None:
    """Law: the line that names the next command names the flag too."""
    assert leads_to_code(value)


@pytest.mark.parametrize(
    "value",
    [
        "mlp",
        "runs/mine",
        "s3://bucket/data",
        {"hidden": [16], "dropout": 0.2},
        [f"{PREFIX}metrics.0"],  # an object of a program, which no flag brings back
        None,
        0.5,
    ],
)
def test_and_what_does_not(value: object) -> None:
    assert not leads_to_code(value)


def change(run: Path, group: str, values: dict[str, Any]) -> None:
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content[group] |= values
    path.write_text(yaml.safe_dump(content))


def call(command: str, *arguments: object) -> int:
    found: int = importlib.import_module(f"launch.{command}").main([*map(str, arguments)])
    return found


def arguments_of(command: str, run: Path) -> list[str]:
    images = run / "images.npy"
    np.save(images, np.zeros((1, 1, 9, 7), dtype=np.uint8))
    config = f"--config={run / 'config.yaml'}"
    return {
        "evaluate": [str(run)],
        "predict": [str(run), str(images), f"--output={run / 'rows.csv'}"],
        "export": [str(run), "--format=safetensors"],
        "find_lr": [config, f"--output={run / 'curve.png'}", "--lr_finder.steps=10"],
        "doctor": [config],
        "train": [config, f"--output_dir={run.parent / 'more'}", "--train.max_steps=1"],
    }[command]


def test_every_key_that_may_name_code_is_tried() -> None:
    """Law: those of which the table of keys says so."""
    table = (ROOT / "docs/config.md").read_text()
    named = set(re.findall(r"^\| `([\w.]+)` .*[Ii]mport path", table, re.MULTILINE))
    tried = {f"{what.split()[0]}.{key}" for what, values in KEYS.items() for key in values}
    assert named - {"data.kwargs", "task.kwargs"} <= tried
    assert len(named) > 10


@pytest.mark.parametrize("what", KEYS)
def test_no_key_of_a_run_directory_runs_code(run: Path, mark: Path, what: str) -> None:
    """Law: neither before a message nor after it; and it names key, import path and way out."""
    change(run, what.split()[0], KEYS[what])
    make_tree(run / "pictures")
    with pytest.raises(InputError, match=r"harmful:harm.* repeat: .*--trust_code") as refused:
        call("train", *arguments_of("train", run))
    assert f"{what.split()[0]}." in str(refused.value)
    assert str(run / "config.yaml") in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "command",
    ["evaluate", "predict", "export", "find_lr", pytest.param("doctor", marks=pytest.mark.process)],
)
def test_no_command_runs_code_of_a_run_directory(run: Path, mark: Path, command: str) -> None:
    kwargs = {"cmd": f"touch {mark}"}
    change(run, "model", {"name": "subprocess:getoutput", "kwargs": kwargs})
    with pytest.raises(InputError, match=r"'subprocess:getoutput'.*--trust_code"):
        call(command, *arguments_of(command, run))
    assert not mark.exists()


def test_a_directory_that_hides_what_it_is_runs_no_code_either(run: Path, mark: Path) -> None:
    """Law: what is given as a run is one, whatever its files are called."""
    change(run, "model", {"name": "harmful:harm"})
    best = (run / "checkpoints/best").resolve()
    (run / "other").mkdir()
    best.rename(run / "other/step")
    shutil.rmtree(run / "checkpoints")
    for name in ("metrics.jsonl", "summary.json", "environment.json"):
        (run / name).unlink(missing_ok=True)
    facts = (run / "model.json").read_bytes()
    (run / "other/model.json").write_bytes(facts)
    (run / "model.json").rename(run / "other.json")
    change(run, "data", {"dataset": "harmful:harm"})
    with pytest.raises(InputError, match="--trust_code"):
        call("evaluate", run / "other/step")
    assert not mark.exists()


def test_who_trusts_the_code_says_so(run: Path, mark: Path) -> None:
    (run / "harmful.py").write_text(
        CODE.format(mark=str(mark)) + "from trainer.networks.mlp import MLP\n"
    )
    change(run, "model", {"name": "harmful:MLP"})
    assert call("evaluate", run, "--trust_code") == 0
    assert mark.exists()


def test_what_the_user_names_himself_is_his(run: Path, mark: Path) -> None:
    """Law: an import path on the command line, or in a config of his own, needs no flag."""
    change(run, "data", {"dataset": "harmful:harm"})
    with pytest.raises(InputError, match="expected a callable"):  # it was imported and called
        call("evaluate", run, "--data.dataset=harmful:harm")
    assert mark.exists()
    own = run.parent / "own.yaml"
    own.write_text("model: {name: 'harmful:harm'}\n")
    arguments = ["--config", str(own), f"--output_dir={run.parent}", "--train.max_steps=1"]
    with pytest.raises(InputError, match=r"returns a torch\.nn\.Module"):
        call("train", *arguments)


def test_names_of_our_own_need_no_trust(run: Path) -> None:
    assert call("evaluate", run) == 0


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_files_that_timm_unpickles_need_trust_too(run: Path, key: str) -> None:
    load_config([f"--config={run / 'config.yaml'}"], prog="", description="")
    with pytest.raises(InputError, match=rf"model\.kwargs\.{key}.*--trust_code"):
        timm_model("resnet18", input_shape=(3, 8, 8), num_classes=2, **{key: "evil.pth"})


@pytest.mark.process
def test_the_message_has_the_command_to_repeat(run: Path) -> None:
    change(run, "model", {"name": "harmful:harm"})
    finished = launch("launch/export.py", run, "--format", "onnx")
    assert finished.status == 2
    assert f"launch/export.py {run} --format onnx --trust_code" in finished.output
    assert "Traceback" not in finished.output
