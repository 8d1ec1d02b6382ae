"""The wheel in somebody else's project: one package, and nothing of theirs is hidden."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import ROOT, Finished, python_command, start, wait
from tests.support.runs import assert_same_bits, series

pytestmark = [pytest.mark.process, pytest.mark.slow]

SOURCES = ("configs", "data", "trainer", "launch", "convoy")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
NET = """
from torch import nn
from configs.mine import VALUE as ONE
from data.mine import VALUE as TWO
from launch.mine import VALUE as THREE
from trainer.mine import VALUE as FOUR

class Net(nn.Sequential):
    def __init__(self, input_shape, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(784, ONE * TWO * THREE * FOUR), nn.Linear(1, 10))
"""
SCRIPT = """
import torch
from convoy import fit
from convoy.data.datasets import ArrayDataset
from convoy.trainer.networks.mlp import MLP

torch.manual_seed(0)
points = torch.rand(300, 2)
sets = [ArrayDataset(part, part.argmax(1)) for part in (points[:200], points[200:])]
run = fit(model=MLP((2,), 2, hidden=[8]), data=tuple(sets), epochs=2, name="called",
          **{"parallel.device": "cpu"})
print(run)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy of the sources, beside what an older build has left there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / "source")
    stale = folder / "source/build/lib/configs"
    stale.mkdir(parents=True)
    (stale / "__init__.py").touch()
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
    built = wait(start([*pip, f"--wheel-dir={folder}", str(folder / "source")]))
    assert built.status == 0, built.output
    return next(folder.glob("convoy-*.whl"))


@pytest.fixture(scope="module")
def project(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with packages of the same names, and an environment that has Convoy."""
    folder = tmp_path_factory.mktemp("project")
    for name in SOURCES[:-1]:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / "mine.py").write_text("VALUE = 1\n")
    (folder / "trainer/net.py").write_text(NET)
    (folder / "programs").mkdir()
    (folder / "programs/script.py").write_text(SCRIPT)
    np.save(folder / "images.npy", np.zeros((5, 28, 28), dtype=np.uint8))
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), "install"]
    installed = wait(start([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)]))
    assert installed.status == 0, installed.output
    return folder


def convoy(project: Path, *words: object, program: str = "convoy") -> Finished:
    """A command of the environment, in the project."""
    command = [str(project / "environment/bin" / program), *map(str, words)]
    return wait(start(command, cwd=project, env={"PYTHONPATH": ""}))


def test_one_package_is_installed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"convoy"}
    top = next(name for name in names if name.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top).decode().split() == ["convoy"]
    expected = {
        f"convoy/{path.relative_to(ROOT)}".replace("convoy/convoy/", "convoy/")
        for name in SOURCES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    }
    assert expected == {name for name in names if ".dist-info/" not in name} - {
        name for name in names if name.endswith(".md")
    }


def test_every_command_works_beside_packages_of_the_same_names(project: Path) -> None:
    """Law: a network of the user's own `trainer/` on two ranks, then all that is done with it."""
    own = ["--model.name=trainer.net:Net", "--model.kwargs={}", "--parallel.device=cpu"]
    run = ["runs/mnist", "--trust_code"]
    few = ["--train.max_steps=20", "--logging.every_steps=5"]
    commands: list[tuple[list[str], str]] = [
        (["--help"], "find-lr"),
        (["train", "--nproc", "2", "--config", "mnist", *own, *few], "run directory runs/mnist"),
        (["evaluate", *run], "runs/mnist: evaluation.json"),
        (["predict", *run, "images.npy"], "images.npy,4,"),
        (["export", *run, "--format=safetensors", "--output=net.safetensors"], "read back"),
        (["compare", "runs/mnist"], "mnist"),
        (["find-lr", *own, "--lr_finder.steps=20"], "steps from"),
        (["prepare", "mnist"], "mnist"),
    ]
    for words, expected in commands:
        finished = convoy(project, *words)
        assert finished.status == 0, (words, finished.output)
        assert expected in finished.output, (words, finished.output)
        assert "Traceback" not in finished.output
    doctor = convoy(project, "doctor")
    assert doctor.status in (0, 1), doctor.output  # the machine's own problems
    assert "Traceback" not in doctor.output
    for words, reason in (
        (["benchmark", "--quick"], "a checkout of the project"),
        (["sweep", "--seeds=0..1", "--slurm"], "a checkout of the project"),
        (["evaluate", "runs/mnist"], "repeat: convoy evaluate runs/mnist --trust_code"),
    ):
        refused = convoy(project, *words)
        assert refused.status == 2, refused.output
        assert reason in refused.stderr
    environment = json.loads((project / "runs/mnist/environment.json").read_text())
    assert environment["world_size"] == 2
    assert environment["git_commit"] is None


def test_the_repository_and_the_installed_package_continue_each_other(project: Path) -> None:
    """Law: to the same bits as a run that was left alone, in either direction."""
    options = ["--config=mnist", "--output_dir=mixed", "--parallel.device=cpu"]
    options += ["--logging.every_steps=5", "--evaluate.every_epochs=null"]

    def train(name: str, steps: int, *, installed: bool) -> None:
        words = [*options, f"--name={name}", f"--train.max_steps={steps}"]
        if installed:
            finished = convoy(project, "train", *words)
        else:
            finished = wait(start(python_command("launch/train.py", *words), cwd=project))
        assert finished.status == 0, finished.output

    train("whole", 15, installed=False)
    train("mixed", 5, installed=True)
    train("mixed", 10, installed=False)
    train("mixed", 15, installed=True)
    whole, mixed = project / "mixed/whole", project / "mixed/mixed"
    assert_same_bits(mixed, whole)
    assert len(series(whole, "train/loss")) == 3
    assert series(mixed, "train/loss") == series(whole, "train/loss")


def test_objects_of_the_project_are_the_same_objects_wherever_it_lies(project: Path) -> None:
    """Law: what a program passes to `fit` is told apart by names that do not move."""
    first = convoy(project, "programs/script.py", program="python")
    assert first.status == 0, first.output
    script = [sys.executable, "programs/script.py"]
    again = wait(start(script, cwd=project, env={"PYTHONPATH": str(ROOT)}))
    assert again.status == 0, again.output
    assert "already finished" in again.output, again.output
