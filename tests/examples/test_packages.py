"""Models of timm, torchvision and Hugging Face as they are: no line of an example is there for this
trainer, and every promise holds. Each is skipped where its package is not installed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.support.processes import (
    ROOT,
    children,
    python_command,
    start,
    torchrun_command,
    wait,
    wait_for_step,
)
from tests.support.runs import assert_same_bits, comparable, latest_weights

pytestmark = [pytest.mark.process, pytest.mark.slow]
PACKAGES = {
    "timm": "timm",
    "torchvision": "torchvision",
    "bert": "transformers",
    "boxes": "torchvision",
}
RUNS = {"one": (1, "ddp"), "ddp": (2, "ddp"), "fsdp": (2, "fsdp")}


def command(name: str, folder: Path, ranks: int, strategy: str) -> list[str]:
    words = [
        f"--config={ROOT / 'examples' / name}.yaml",
        f"--output_dir={folder}",
        f"--parallel.strategy={strategy}",
        "--parallel.device=cpu",
        "--logging.every_steps=1",
        "--logging.progress=off",
        "--checkpoint.every_steps=4",
        "--train.epochs=1",
        "--train.max_steps=12",
    ]
    if ranks == 1:
        return python_command("launch/train.py", *words)
    return torchrun_command(ranks, "launch/train.py", *words)


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("name", PACKAGES)
def test_a_killed_run_ends_with_the_bits_of_one_left_alone(
    name: str, how: str, tmp_path: Path
) -> None:
    """Law: after kill -9 of every process, by the same command."""
    pytest.importorskip(PACKAGES[name], reason=f"takes `pip install {PACKAGES[name]}`")
    ranks, strategy = RUNS[how]
    process = start(command(name, tmp_path / "killed", ranks, strategy))
    wait_for_step(tmp_path / "killed" / name, 6, process)
    for pid in children(process.pid) if ranks > 1 else []:
        os.kill(pid, signal.SIGKILL)
    process.kill()
    wait(process)
    for folder in ("killed", "whole"):
        finished = wait(start(command(name, tmp_path / folder, ranks, strategy)))
        assert finished.status == 0, finished.output
    killed, whole = (tmp_path / folder / name for folder in ("killed", "whole"))
    assert_same_bits(killed, whole)
    assert comparable(killed) == comparable(whole)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_run_moves_from_two_shards_to_one_rank(name: str, tmp_path: Path) -> None:
    """Law: what FSDP saved on two ranks is continued on one, and learns on."""
    pytest.importorskip(PACKAGES[name], reason=f"takes `pip install {PACKAGES[name]}`")
    for ranks, strategy, steps in ((2, "fsdp", 6), (1, "ddp", 12)):
        words = [*command(name, tmp_path, ranks, strategy), f"--train.max_steps={steps}"]
        finished = wait(start(words))
        assert finished.status == 0, finished.output
    records = comparable(tmp_path / name)
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 12
    assert all(torch.isfinite(value).all() for value in latest_weights(tmp_path / name).values())
