"""Optimizers and schedulers of torch through the command line, with real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.processes import train
from tests.support.runs import assert_same_bits, latest_weights, records, series

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]


@pytest.mark.slow
def test_lbfgs_on_two_ranks_is_lbfgs_on_one(small: Arguments, tmp_path: Path) -> None:
    """Every rank takes the same decisions in its line searches; the last batch is short."""
    extra = [
        "--model.kwargs.dropout=0",
        "--optimizer.name=lbfgs",
        "--optimizer.lr=1",
        '--optimizer.kwargs={"line_search_fn": "strong_wolfe", "max_iter": 3}',
        "--train.global_batch_size=128",
        "--train.micro_batch_size=32",
        "--train.max_steps=6",
        "--parallel.drift_every_steps=1",
    ]
    for ranks in (1, 2):
        train(*small(f"ranks{ranks}", *extra), ranks=ranks)
    one, two = (series(tmp_path / f"ranks{ranks}", "train/loss") for ranks in (1, 2))
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-3)
    assert one[-1] < 0.5 * one[0]
    theirs = latest_weights(tmp_path / "ranks2")
    for name, weight in latest_weights(tmp_path / "ranks1").items():
        torch.testing.assert_close(theirs[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_plateau_is_continued_bit_for_bit(small: Arguments, tmp_path: Path) -> None:
    """Stopped within an epoch; the evaluation at that end does not count."""
    extra = [
        "--optimizer.name=RMSprop",
        '--optimizer.kwargs={"momentum": 0.5}',
        "--schedule.name=ReduceLROnPlateau",
        '--schedule.kwargs={"factor": 0.5, "patience": 0, "threshold": 0.05}',
        "--train.epochs=4",
        "--train.global_batch_size=64",
        "--optimizer.weight_decay=0.01",
        "--optimizer.decay_norms_and_biases=false",
        "--optimizer.layer_decay=0.8",
    ]
    train(*small("whole", *extra))
    train(*small("parts", *extra, "--train.max_steps=13"))
    train(*small("parts", *extra))
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    rates = [record["train/lr"] for record in records(tmp_path / "whole") if "train/lr" in record]
    assert len(set(rates)) > 1
    assert rates == series(tmp_path / "parts", "train/lr")
    assert all(rates[step] == rates[0] for step in range(8)), "an epoch has one rate"
