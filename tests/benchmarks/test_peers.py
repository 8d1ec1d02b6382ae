"""Every peer is a real program: it learns on a slice and reports itself in one JSON line."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.common import load_mnist
from tests.support.processes import ROOT, launch

PEERS = ROOT / "benchmarks/peers"
SHARED = {"common", "torch_common", "text_common", "passes_by_hand", "jax_common", "mini_framework"}
KEYS = {
    "name",
    "train_seconds",
    "compile_seconds",
    "first_step_seconds",
    "test_accuracy",
    "train_loss",
    "peak_memory_bytes",
    "epochs",
    "steps",
    "samples_per_epoch",
    "threads",
    "ranks",
    "extrapolated",
}


def program(name: str, *arguments: object, needs: str = "torch") -> dict[str, Any]:
    """The line a peer prints."""
    if find_spec(needs) is None:
        pytest.skip(f"{needs} IS NOT INSTALLED: pip install -e '.[benchmark]' to test this peer")
    finished = launch(PEERS / f"{name}.py", "--threads=1", *arguments)
    assert finished.status == 0, finished.output[-4000:]
    line: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    assert line.keys() >= KEYS
    assert line["first_step_seconds"] > 0
    assert line["peak_memory_bytes"] > 30 * 2**20
    return line


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "reported", "needs"),
    [
        ("bare", "bare", "torch"),
        ("bare_passes", "bare-passes", "torch"),
        ("pytorch", "pytorch", "torch"),
        ("accelerate_loop", "accelerate", "accelerate"),
        ("lightning_loop", "lightning", "lightning"),
        ("jax_scan", "jax-scan", "jax"),
        ("jax_step", "jax-step", "jax"),
    ],
)
def test_a_peer_learns_on_a_slice(name: str, reported: str, needs: str) -> None:
    """Law: 2,592 samples are 41 steps of 64 an epoch, the last one short; two epochs learn."""
    line = program(name, "--epochs=2", "--limit=2592", needs=needs)
    assert line["name"] == reported
    assert (line["epochs"], line["steps"], line["samples_per_epoch"]) == (2, 82, 2592)
    assert len(line["train_seconds"]) == 2
    assert line["test_accuracy"] > 0.84
    assert 0.1 < line["train_loss"] < 0.7
    assert not line["extrapolated"]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reported", "needs"),
    [
        ("text_pytorch", "text-pytorch", "torch"),
        ("text_accelerate", "text-accelerate", "accelerate"),
        ("text_lightning", "text-lightning", "lightning"),
    ],
)
def test_a_peer_of_the_language_model_learns_on_a_slice(
    name: str, reported: str, needs: str
) -> None:
    """Law: 328 windows are 21 steps of 16; letters by their frequency are told with a loss of 3."""
    line = program(name, "--epochs=1", "--limit=328", needs=needs)
    assert (line["name"], line["steps"], line["samples_per_epoch"]) == (reported, 21, 328)
    assert line["tokens_per_sample"] == 128
    assert 2 < line["test_loss"] < 3.5
    assert 2 < line["train_loss"] < 4.4


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs"), [("pytorch_ddp", "torch"), ("lightning_loop", "lightning")]
)
def test_a_peer_on_two_ranks_learns_and_speaks_once(name: str, needs: str) -> None:
    line = program(name, "--ranks=2", "--epochs=2", "--limit=2560", needs=needs)
    assert (line["ranks"], line["steps"], line["samples_per_epoch"]) == (2, 80, 2560)
    assert line["test_accuracy"] > 0.84


@pytest.mark.process
def test_max_steps_ends_a_peer_early() -> None:
    line = program("bare", "--epochs=5", "--limit=640", "--max-steps=13")
    assert (line["epochs"], line["steps"]) == (2, 13)


@pytest.mark.process
def test_pure_python_says_that_it_extrapolates() -> None:
    """Law: one step of 64 samples out of 6,400 is reported as a hundred times its time."""
    line = program("pure_python", "--max-steps=1", "--limit=6400")
    assert line["extrapolated"] is True
    assert line["measured_samples"] == 64
    assert line["train_seconds"][0] == pytest.approx(line["measured_seconds"] * 100)
    assert line["train_loss"] == pytest.approx(np.log(10), abs=0.25)


def test_the_images_are_the_embedded_mnist_normalised() -> None:
    train, test = load_mnist()
    assert train.pixels.shape == (60_000, 784)
    assert len(test.labels) == 10_000
    values = train.normalised()
    assert values.dtype == np.float32
    assert float(values.mean()) == pytest.approx(0, abs=1e-3)
    assert float(values.std()) == pytest.approx(1, abs=1e-3)


def test_no_peer_has_the_name_of_a_package() -> None:
    """Law: a program's folder comes first on sys.path; nothing in it may hide a real package."""
    names = {path.stem for path in PEERS.glob("*.py")}
    wanted: set[str] = set()
    for path in PEERS.glob("*.py"):
        wanted |= set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    assert not names & (wanted | set(sys.stdlib_module_names))


def test_every_program_stays_short() -> None:
    lengths = {
        path.name: len(path.read_text().splitlines())
        for path in Path(PEERS).glob("*.py")
        if path.stem not in SHARED
    }
    assert max(lengths.values()) <= 100, lengths


@pytest.mark.process
def test_the_floors_count_the_work_of_a_step() -> None:
    """Law: each weight costs 2 * 64 flop in three products; the first layer takes part in two."""
    finished = launch("benchmarks/floors.py", "--threads=1", "--series=1")
    assert finished.status == 0, finished.output[-4000:]
    found = json.loads(finished.stdout.splitlines()[-1])
    first, others = 784 * 256, 256 * 128 + 128 * 10
    assert found["products_flops"] == 2 * 64 * (2 * first + 3 * others)
    assert found["adam_bytes"] == 7 * 4 * (first + others + 256 + 128 + 10)
    assert all(value > 0 for value in found.values())
