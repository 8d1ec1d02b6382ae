"""Starting from weights, frozen parts, parts that are trained later: on one rank and on two."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from tests.support.odd_runs import CHANGING, arguments, run
from tests.support.processes import train
from tests.support.runs import assert_same_bits, latest_weights
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.ranks.failures import RunFailed

TUNED = (
    "--model.weights_partial=[norm]",
    "--model.freeze=[norm]",
    "--model.train_from={a: 3, b.weight: 2}",
    "--optimizer.lr_factors={a: 0.5}",
    "--optimizer.weight_decay=0.1",
    "--checkpoint.keep=9",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a network without the norm."""
    return run(tmp_path_factory.mktemp("base"), "Base", "--train.epochs=1")


def weights_after(folder: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step_{3 * epoch:08d}")[0]


def test_parts_stay_as_they_are_until_their_epoch(base: Path, tmp_path: Path) -> None:
    """Law: what is frozen keeps its bits, under weight decay and an optimizer with a memory."""
    tuned = run(tmp_path, f"{CHANGING}:Normed", f"--model.weights={base}", *TUNED)
    start = load_checkpoint(base / "checkpoints" / "best")[0]
    changed = [
        [name for name in start if not torch.equal(weights_after(tuned, epoch)[name], start[name])]
        for epoch in (1, 2, 3)
    ]
    assert changed[0] == ["b.bias", "c.bias", "c.weight"]
    assert changed[1] == ["b.bias", "b.weight", "c.bias", "c.weight"]
    assert changed[2] == sorted(start)
    norm = weights_after(tuned, 3)
    assert norm["norm.weight"].eq(1).all()
    assert norm["norm.num_batches_tracked"] == 0


@pytest.mark.parametrize("stop", [4, 8])
def test_a_stopped_run_goes_on_without_the_file_and_ends_with_the_same_bits(
    stop: int, base: Path, tmp_path: Path
) -> None:
    """Law: weights are loaded once, when the run begins; frozen parts are a function of the epoch.

    That the file is the same one is known from its digest, which the directory keeps.
    """
    copy = tmp_path / "given"
    shutil.copytree(base, copy, symlinks=True)
    options = (f"--model.weights={copy}", *TUNED, "--train.ema_decay=0.9")
    whole = run(tmp_path / "whole", f"{CHANGING}:Normed", *options)
    run(tmp_path / "parts", f"{CHANGING}:Normed", *options, f"--train.max_steps={stop}")
    shutil.rmtree(copy)
    assert_same_bits(whole, run(tmp_path / "parts", f"{CHANGING}:Normed", *options))
    with pytest.raises(InputError, match=r"model\.weights: given"):
        run(tmp_path / "new", f"{CHANGING}:Normed", *options)


def test_other_weights_are_another_run(base: Path, tmp_path: Path) -> None:
    """Law: the digest of the weights is part of what the run is, and their place is not."""
    copy = tmp_path / "given"
    shutil.copytree(base, copy, symlinks=True)
    short = ("--train.max_steps=2", "--train.epochs=2")
    run(tmp_path, "Base", f"--model.weights={base}", *short)
    run(tmp_path, "Base", f"--model.weights={copy}", "--train.epochs=2", "--train.max_steps=3")
    assert not (tmp_path / "run.1").exists(), "it went on"
    changed = latest_weights(base)
    changed["a.bias"] += 1
    torch.save(changed, tmp_path / "other.pt")
    summary = tmp_path / "run" / "summary.json"
    summary.write_text(summary.read_text().replace("completed", "failed"))
    with pytest.raises(InputError, match="weights_sha256"):
        run(tmp_path, "Base", f"--model.weights={tmp_path / 'other.pt'}", "--train.epochs=2")
    assert (tmp_path / "run" / "config.yaml").read_text().count("weights_sha256: ") == 1


def test_unfreezing_by_hand_is_refused_when_it_is_seen(tmp_path: Path) -> None:
    """Law: it would change nothing, so it is refused; the message shows the way."""
    with pytest.raises(RunFailed, match=r"a\.weight of the model was unfrozen.*model\.train_from"):
        run(tmp_path, f"{CHANGING}:Unfreezing")


@pytest.mark.process
@pytest.mark.parametrize(
    "way",
    [
        (),
        pytest.param(("--parallel.reduction=exact", "--parallel.shards=2"), marks=pytest.mark.slow),
        pytest.param(("--parallel.strategy=fsdp",), marks=pytest.mark.slow),
    ],
)
def test_two_ranks_tune_as_one(way: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    """Law: under DDP, FSDP and exact reduction; with the last one to the last bit."""
    options = (f"--model.weights={base}", *TUNED, *way)
    one = run(tmp_path / "one", f"{CHANGING}:Normed", *options, "--parallel.threads=1")
    train(*arguments(tmp_path / "two", f"{CHANGING}:Normed", *options), ranks=2)
    ours, theirs = latest_weights(one), latest_weights(tmp_path / "two" / "run")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    if "--parallel.reduction=exact" in way:
        assert_same_bits(one, tmp_path / "two" / "run")
