"""Batches and outputs of any structure: every promise of a pair of tensors is kept for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launch.train import main
from tests.support.processes import ROOT, launch, train
from tests.support.runs import assert_same_bits, latest_weights, series

pytestmark = pytest.mark.usefixtures("one_thread")
EXAMPLES = ROOT / "examples"
LEARNED = {
    "sentences": ("eval/accuracy", 0.9, 1.0),
    "autoencoder": ("eval/loss", 0.0, 12.0),
    "pairs": ("eval/accuracy", 0.85, 1.0),
    "segmentation": ("eval/miou", 0.9, 1.0),
    "detection": ("eval/loss", 0.0, 0.5),
    "gan": ("eval/distance", 0.0, 0.4),
    "tied": ("eval/token_accuracy", 0.4, 0.75),
    "lines": ("eval/accuracy", 0.9, 1.0),
    "contrastive": ("eval/loss", 0.0, 1.0),  # ln(16) before
}
NAMES = tuple(LEARNED)
QUICK = ("sentences", "detection")
"""Whose exact runs are tried in every run of the tests."""
ADDED = [name for name in NAMES if name != "contrastive"]
"""Whose loss is the same, however a global batch is cut."""


def run(folder: Path, name: str, *more: object, ranks: int = 1) -> Path:
    """An example in a folder; global batches of 64, 48 or 16 leave a short last one."""
    words = [f"--config={EXAMPLES / name}.yaml", f"--output_dir={folder}", "--parallel.device=cpu"]
    words += [f"--data.root={folder / 'data'}"] if name == "lines" else []
    words += ["--logging.progress=off", *map(str, more)]
    if ranks == 1:
        assert main(words) == 0
    else:
        train(*words, ranks=ranks)
    return folder / name


@pytest.mark.process
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_exact_runs_have_the_same_bits_on_one_rank_and_on_two_that_were_stopped(
    name: str, tmp_path: Path
) -> None:
    """Law: neither the ranks nor a stop in the middle of an epoch moves a bit, whatever a batch is;
    the short last batch leaves shards, and a rank's last micro-batches, without samples."""
    micro = () if name == "contrastive" else ("--train.micro_batch_size=2",)
    exact = ("--parallel.reduction=exact", *micro, "--train.epochs=2")
    one = run(tmp_path / "one", name, *exact)
    run(tmp_path / "two", name, *exact, "--train.max_steps=8", ranks=2)
    two = run(tmp_path / "two", name, *exact, ranks=2)
    assert_same_bits(one, two)
    assert series(one, "eval/loss")[-1] == series(two, "eval/loss")[-1]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", ADDED)
def test_two_ranks_learn_what_one_learns(name: str, tmp_path: Path) -> None:
    """Law: the gradient is that of the whole global batch, however it is cut."""
    more = ("--train.epochs=1", "--train.max_steps=30")
    if name in ("autoencoder", "gan", "tied"):  # noise differs by rank
        more = (*more, "--optimizer.lr=1e-9")
    one = latest_weights(run(tmp_path / "one", name, *more))
    for strategy in ("ddp", "fsdp"):
        cut = ("--train.micro_batch_size=4", f"--parallel.strategy={strategy}")
        two = latest_weights(run(tmp_path / strategy, name, *more, *cut, ranks=2))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_they_learn(name: str, tmp_path: Path) -> None:
    found = json.loads((run(tmp_path, name) / "summary.json").read_text())
    key, least, most = LEARNED[name]
    assert least <= found[key] <= most, found


@pytest.mark.process
@pytest.mark.parametrize("name", ["sentences", pytest.param("detection", marks=pytest.mark.slow)])
def test_commands_know_them_or_refuse_at_once(name: str, tmp_path: Path) -> None:
    """Law: an evaluation afterwards has the values of the run; what takes one tensor says so."""
    folder = run(tmp_path, name, "--train.max_steps=3")
    env = {"PYTHONPATH": str(EXAMPLES)}
    found = launch("launch/evaluate.py", folder, "--trust_code", env=env)
    assert found.status == 0, found.output
    metrics = json.loads((folder / "evaluation.json").read_text())["metrics"]
    summary = json.loads((folder / "summary.json").read_text())
    assert metrics["loss"] == summary["eval/loss"]
    weights = launch("launch/export.py", folder, "--trust_code", "--format=safetensors", env=env)
    assert weights.status == 0, weights.output
    program = launch("launch/export.py", folder, "--trust_code", "--format=torch_export", env=env)
    assert program.status == 2
    assert "Traceback" not in program.output
