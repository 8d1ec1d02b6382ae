"""Training metrics: sums over micro-batches, minus what was skipped."""

from __future__ import annotations

import time

import pytest
import torch

from trainer.meter import Meter, Stopwatch
from trainer.runtime import Runtime

ALONE = Runtime(launcher="python")
NAN, INF = float("nan"), float("inf")


def meter(*micro_batches: tuple[int, float, int, int]) -> Meter:
    """From (window, summed loss, correct, count)."""
    made = Meter()
    for window, loss, correct, count in micro_batches:
        made.add(window, torch.tensor(loss), torch.tensor(correct), count)
    return made


def test_the_means_are_over_samples_not_over_micro_batches() -> None:
    totals = meter((0, 8.0, 2, 4), (0, 1.0, 1, 1), (1, 6.0, 0, 5)).collect(ALONE)
    assert (totals.loss, totals.score) == (15 / 10, 3 / 10)


def test_a_collection_starts_anew() -> None:
    made = meter((0, 8.0, 2, 4))
    made.collect(ALONE)
    made.add(1, torch.tensor(3.0), torch.tensor(1), 2)
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (1.5, 0.5)


def test_sums_are_taken_in_double_precision() -> None:
    totals = meter((0, 2.0**24, 0, 1), *[(0, 1.0, 0, 1)] * 63).collect(ALONE)
    assert totals.loss == (2.0**24 + 63) / 64


def test_an_empty_meter_has_means_of_zero_and_no_bad_window() -> None:
    assert Meter().first_bad_window(ALONE) is None
    totals = Meter().collect(ALONE)
    assert (totals.loss, totals.score) == (0.0, 0.0)


@pytest.mark.parametrize("num_skipped", [1, 3])
def test_a_forgotten_window_counts_neither_its_loss_nor_its_samples(num_skipped: int) -> None:
    made = meter((0, 8.0, 2, 4), *[(1, INF, 0, 4)] * num_skipped)
    made.forget(1)
    assert made.first_bad_window(ALONE) is None
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (2.0, 0.5)


def test_only_the_latest_window_is_forgotten() -> None:
    made = meter((0, 8.0, 2, 4), (1, 4.0, 4, 4))
    made.forget(0)
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (1.5, 0.75)


def test_forgetting_in_an_empty_meter_is_nothing() -> None:
    made = Meter()
    made.forget(3)
    assert made.collect(ALONE).loss == 0.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([(5, "bad")], 5),
        ([(0, 1.0), (1, 2.0), (2, "bad"), (3, 1.0), (4, "bad")], 2),
        ([(0, 1.0), (0, "bad"), (1, 1.0)], 0),
        ([(0, 1.0), (1, 2.0)], None),
    ],
)
def test_the_first_window_whose_loss_is_not_finite_is_named(
    losses: list[tuple[int, float | str]], expected: int | None, bad: float
) -> None:
    made = meter(*[(w, bad if isinstance(loss, str) else loss, 0, 1) for w, loss in losses])
    assert made.first_bad_window(ALONE) == expected
    assert made.first_bad_window(ALONE) == expected  # asking changes nothing


def test_the_first_bad_window_is_the_earliest_on_any_rank() -> None:
    """After a restart on fewer ranks one meter holds the windows of several, one after another."""
    made = meter((0, 1.0, 0, 1), (1, NAN, 0, 1), (0, NAN, 0, 1), (1, 1.0, 0, 1))
    assert made.first_bad_window(ALONE) == 0


def test_no_value_is_read_before_a_collection() -> None:
    """Reading one would make every step wait for the device; meta tensors have none to read."""
    made = meter((0, 8.0, 2, 4))
    made.add(1, torch.empty((), device="meta"), torch.empty((), device="meta"), 4)
    made.forget(1)
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (2.0, 0.5)


def test_a_stopwatch_counts_what_lies_between_mark_and_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch()
    now = 102.0
    watch.lap(40)
    now = 103.0
    watch.mark()  # the second before it was an evaluation
    now = 105.0
    watch.lap(60)
    assert watch.total_seconds == 4.0
    assert watch.read() == 25.0
    now = 106.0
    watch.lap(10)
    assert watch.read() == 10.0  # since the last reading
    assert watch.total_seconds == 5.0
