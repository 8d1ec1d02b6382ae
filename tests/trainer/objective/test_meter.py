"""Training metrics: sums over micro-batches, minus what was skipped."""

from __future__ import annotations

import time

import pytest
import torch

from trainer.objective.meter import Meter, Totals
from trainer.ranks.runtime import Runtime
from trainer.records.stopwatch import Stopwatch

ALONE = Runtime(launcher="python")
NAN, INF = float("nan"), float("inf")


def meter(*micro_batches: tuple[int, float, int, int]) -> Meter:
    """From (global batch, summed loss, correct, count)."""
    made = Meter()
    for global_batch, loss, correct, count in micro_batches:
        made.add(global_batch, torch.tensor(loss), torch.tensor(correct), count)
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


def test_an_empty_meter_has_means_of_zero_and_no_bad_global_batch() -> None:
    assert Meter().first_bad_global_batch(ALONE) is None
    totals = Meter().collect(ALONE)
    assert (totals.loss, totals.score) == (0.0, 0.0)


@pytest.mark.parametrize("num_skipped", [1, 3])
def test_a_forgotten_global_batch_counts_neither_its_loss_nor_its_samples(num_skipped: int) -> None:
    made = meter((0, 8.0, 2, 4), *[(1, INF, 0, 4)] * num_skipped)
    made.forget(1)
    assert made.first_bad_global_batch(ALONE) is None
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (2.0, 0.5)


def test_a_global_batch_is_forgotten_wherever_it_stands() -> None:
    """With fp16 a row of steps is over before the host hears which one was skipped."""
    made = meter((0, 8.0, 2, 4), (1, 4.0, 4, 4), (1, 2.0, 3, 4), (2, 1.0, 1, 4))
    made.forget(1)
    totals = made.collect(ALONE)
    assert (totals.loss, totals.score) == (9 / 8, 3 / 8)


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
def test_the_first_global_batch_whose_loss_is_not_finite_is_named(
    losses: list[tuple[int, float | str]], expected: int | None, bad: float
) -> None:
    made = meter(*[(w, bad if isinstance(loss, str) else loss, 0, 1) for w, loss in losses])
    assert made.first_bad_global_batch(ALONE) == expected
    assert made.first_bad_global_batch(ALONE) == expected  # asking changes nothing


def test_the_first_bad_global_batch_is_the_earliest_on_any_rank() -> None:
    """After a restart on fewer ranks one meter holds the global batches of several, one after
    another."""
    made = meter((0, 1.0, 0, 1), (1, NAN, 0, 1), (0, NAN, 0, 1), (1, 1.0, 0, 1))
    assert made.first_bad_global_batch(ALONE) == 0


def test_no_value_is_read_before_somebody_asks() -> None:
    """Reading one would make every step wait for the device; meta tensors have none to read."""
    made = meter((0, 8.0, 2, 4))
    nothing = torch.empty((), device="meta")
    made.extend([1, 2], *torch.empty(2, 2, device="meta"), [4, 4])
    made.add(3, nothing, nothing, 4)
    unread = made.unread()
    assert made.collect(ALONE).loss == 0.0
    with pytest.raises(NotImplementedError, match="meta"):
        unread.totals(ALONE)


def test_what_is_unread_holds_what_came_before_it() -> None:
    """Micro-batches one by one or some in a row; what comes later is another's."""
    made = meter((0, 8.0, 2, 4))
    made.extend([1, 1], torch.tensor([1.0, INF]), torch.tensor([1, 0]), [1, 5])
    unread = made.unread()
    made.add(2, torch.tensor(3.0), torch.tensor(1), 2)
    assert unread.first_bad_global_batch(ALONE) == 1
    assert (unread.global_batches, unread.counts, unread.losses) == (
        [0, 1, 1],
        [4, 1, 5],
        [8.0, 1.0, INF],
    )
    assert unread.totals(ALONE, [7.0]) == (Totals(INF, 3 / 10, 10), [[7.0]])
    assert made.collect(ALONE).loss == 1.5


def test_a_stopwatch_counts_what_lies_between_mark_and_lap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch()
    now = 102.0
    watch.stop(40)
    now = 103.0
    watch.start()  # the second before it was an evaluation
    now = 105.0
    watch.stop(60)
    assert watch.total_seconds == 4.0
    assert watch.read() == 25.0
    now = 106.0
    watch.stop(10)
    assert watch.read() == 10.0  # since the last reading
    assert watch.total_seconds == 5.0
