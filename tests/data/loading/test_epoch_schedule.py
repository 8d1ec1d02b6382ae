"""Where a global batch lies among the epochs, whatever their batch sizes: checked by counting."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import InputError
from data.loading.epoch_schedule import EpochSchedule
from data.loading.order import Plan

LAWS = settings(max_examples=100, deadline=None)
EPOCHS = 7


@st.composite
def calendars(draw: st.DrawFn) -> dict[str, Any]:
    num_samples = draw(st.integers(1, 60))
    drop_last = draw(st.booleans())
    size = st.integers(1, num_samples if drop_last else 80)
    later = draw(st.dictionaries(st.integers(1, EPOCHS + 1), size, max_size=3))
    return {
        "num_samples": num_samples,
        "batch_sizes": ((0, draw(size)), *sorted(later.items())),
        "drop_last": drop_last,
    }


def written_out(keys: dict[str, Any]) -> list[list[int]]:
    """The sizes of the global batches of every epoch."""
    epochs, sizes = [], dict(keys["batch_sizes"])
    size = sizes[0]
    for epoch in range(EPOCHS):
        size = sizes.get(epoch, size)
        whole, rest = divmod(keys["num_samples"], size)
        epochs.append([size] * whole + ([rest] if rest and not keys["drop_last"] else []))
    return epochs


@LAWS
@given(keys=calendars())
def test_every_global_batch_is_where_counting_finds_it(keys: dict[str, Any]) -> None:
    epoch_schedule, epochs = EpochSchedule(**keys), written_out(keys)
    global_batch = samples = 0
    for epoch, sizes in enumerate(epochs):
        assert epoch_schedule.global_batches_before(epoch) == global_batch
        assert epoch_schedule.steps(epoch) == len(sizes)
        assert epoch_schedule.epochs_ended(global_batch) == (epoch or None)
        for step, size in enumerate(sizes):
            assert epoch_schedule.locate(global_batch)[:3] == (epoch, step, len(sizes))
            assert epoch_schedule.samples_before(global_batch) == samples
            assert epoch_schedule.epochs(global_batch) == pytest.approx(epoch + step / len(sizes))
            assert step == 0 or epoch_schedule.epochs_ended(global_batch) is None
            global_batch += 1
            samples += size


@LAWS
@given(keys=calendars(), ranks=st.integers(1, 3), micro=st.none() | st.integers(1, 9))
def test_ranks_share_every_global_batch_of_every_stage(
    keys: dict[str, Any], ranks: int, micro: int | None
) -> None:
    """Each global batch is the next slice of its epoch's order, complete and disjoint over the
    ranks."""
    sizes = [size for _, size in keys["batch_sizes"]]
    ranks = min(ranks, *sizes)
    plans = [
        Plan(
            num_samples=keys["num_samples"],
            global_batch_size=sizes[0],
            batch_schedule=keys["batch_sizes"][1:],
            micro_batch_size=micro,
            drop_last=keys["drop_last"],
            rank=rank,
            world_size=ranks,
        )
        for rank in range(ranks)
    ]
    global_batch, seen = 0, set()
    for epoch, expected in enumerate(written_out(keys)):
        order = plans[0].order(epoch)
        starts = itertools.accumulate(expected, initial=0)
        for start, size in zip(starts, expected, strict=False):
            global_batches = [plan.global_batch(global_batch) for plan in plans]
            parts = [
                torch.cat([*plan.indices(w)]) for plan, w in zip(plans, global_batches, strict=True)
            ]
            assert torch.equal(torch.cat(parts), order[start : start + size])
            assert {(w.number, w.epoch, w.size) for w in global_batches} == {
                (global_batch, epoch, size)
            }
            seen |= {part.size for w in global_batches for part in w.micro_batches}
            global_batch += 1
    assert seen <= {size for plan in plans for size in plan.micro_batch_sizes}
    largest = plans[0].largest_global_batch.size
    assert all(largest >= size for sizes in written_out(keys) for size in sizes)


def test_a_stage_too_small_for_the_ranks_or_too_large_for_an_epoch_is_refused() -> None:
    keys: dict[str, Any] = {"num_samples": 30, "global_batch_size": 8}
    with pytest.raises(InputError, match=r"train.batch_schedule.*3 ranks") as refused:
        Plan(**keys, batch_schedule=((2, 2),), world_size=3)
    assert "at most 2 ranks" in str(refused.value)
    with pytest.raises(InputError, match=r"train.batch_schedule.*30 training samples"):
        Plan(**keys, batch_schedule=((2, 31),), drop_last=True)
