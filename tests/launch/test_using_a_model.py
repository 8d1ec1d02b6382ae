"""Every command and program of docs/using_a_model.md works as written."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_sets import make_idx
from tests.support.processes import ROOT, environment

GUIDE = (ROOT / "docs/using_a_model.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run and the files that the guide speaks of."""
    from launch.train import main

    folder = tmp_path_factory.mktemp("guide")
    options = ["--train.max_steps=20", "--logging.progress=off", "--parallel.device=cpu"]
    assert main([f"--output_dir={folder / 'runs'}", *options]) == 0
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / "results").mkdir()
    make_idx(folder / "FOLDER", shape=(28, 28), num_train=9, num_test=9)
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    np.save(folder / "images.npy", images)
    Image.fromarray(images[0]).save(folder / "digit.png")
    Image.fromarray(images[1]).resize((90, 120)).save(folder / "photo.jpg")
    return folder


def run(command: str) -> None:
    """In this process, which has torch loaded; in a shell where the command needs one."""
    if "|" in command:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        finished = subprocess.run(
            f"set -o pipefail; {command}",
            shell=True,
            executable="/bin/bash",
            env=environment({"PATH": path}),
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
        return
    program, script, *arguments = shlex.split(command, comments=True)
    assert program == "python"
    assert importlib.import_module(f"launch.{Path(script).stem}").main(arguments) == 0


@pytest.mark.process
def test_the_guide_works_from_top_to_bottom(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: what it shows is what happens, and each file it names is there afterwards."""
    monkeypatch.chdir(place)
    for command in COMMANDS:
        if "--wandb" not in command:  # of a run that W&B has recorded
            run(command)
    for file in (
        "runs/mnist/evaluation.json",
        "runs/mnist/mistakes.png",
        "results/evaluation.json",
        "predictions.jsonl",
        "runs/mnist/model.safetensors",
    ):
        assert (place / file).is_file(), file
    rows = (place / "predictions.jsonl").read_text().splitlines()
    said = [row.split('"name": "')[1][0] for row in rows]
    capsys.readouterr()
    for program in blocks("python"):
        exec(program, {})
    assert capsys.readouterr().out.splitlines()[0] == str(said)


def test_the_guide_shows_every_command() -> None:
    """The tests above are as good as the blocks they find."""
    shown = " ".join(COMMANDS)
    assert all(f"launch/{name}.py" in shown for name in ("evaluate", "predict", "export"))
    assert len(COMMANDS) >= 10
    assert len(blocks("python")) == 2
