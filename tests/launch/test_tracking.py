"""The commands of docs/tracking.md and docs/find_lr.md, as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_config
from launch.find_lr import own_parser, parse_own
from tests.support.processes import ROOT, start, wait

Arguments = Callable[..., list[str]]


def commands(guide: str) -> list[list[str]]:
    """Lines of the shell blocks of a guide, taken apart."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / guide).read_text(), re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).splitlines()]


TRACKING, FIND_LR = commands("docs/tracking.md"), commands("docs/find_lr.md")
TRAINING = [words for words in TRACKING if "launch/train.py" in words]


def run(words: list[str], folder: Path) -> str:
    """Run a command of this environment to its good end; returns what it said."""
    program = (
        [sys.executable] if words[0] == "python" else [str(Path(sys.executable).parent / words[0])]
    )
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(folder)}
    finished = wait(start([*program, *words[1:]], env=env))
    assert finished.status == 0, finished.output[-4000:]
    return finished.output


@pytest.mark.parametrize("words", TRAINING, ids=" ".join)
def test_every_training_command_is_understood(words: list[str]) -> None:
    load_config(words[2:], prog="train", description="")


@pytest.mark.parametrize("words", FIND_LR, ids=" ".join)
def test_every_command_of_the_finder_is_understood(words: list[str]) -> None:
    """What it then does is tested in test_find_lr.py, on one rank and on two."""
    arguments = words[words.index("launch/find_lr.py") + 1 :]
    load_config(parse_own(own_parser(), arguments)[1], prog="find_lr", description="")


@pytest.mark.process
def test_what_is_recorded_offline_can_be_sent_and_shown(small: Arguments, tmp_path: Path) -> None:
    """Train as the guide says; then its `wandb sync` (dry) and `tensorboard` find the run."""
    (offline,) = [words for words in TRAINING if "offline" in words]
    (board,) = [words for words in TRAINING if "--logging.tensorboard" in words]
    (sync,) = [words for words in TRACKING if words[:2] == ["wandb", "sync"]]
    (show,) = [words for words in TRACKING if words[0] == "tensorboard"]
    run([*offline, *board[2:], *small("NAME", "--train.max_steps=3")], tmp_path)
    (folder,) = tmp_path.glob(sync[2].removeprefix("runs/"))
    assert folder.name in run(["wandb", "sync", "--dry-run", str(folder)], tmp_path)
    said = run([*show[:1], "--logdir", str(tmp_path), "--inspect"], tmp_path)
    assert "train/loss" in said


def test_the_sweeps_it_names_are_there() -> None:
    named = [words[2] for words in TRACKING if words[:2] == ["wandb", "sweep"]]
    assert sorted(named) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "configs/sweeps").glob("*.yaml")
    )
    assert all(os.path.isfile(ROOT / name) for name in named)
