"""The order of samples is a function of (seed, epoch); ranks share it without changing it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from configs.errors import InputError
from data.loading.order import GlobalBatch, MicroBatch, Plan, derive_seed, evaluation_batches
from tests.support.processes import run_code

LAWS = settings(max_examples=50, deadline=None)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a plan, rank and world size aside."""
    num_samples = draw(st.integers(1, 150))
    batch = draw(st.integers(1, 60))
    drop_last = draw(st.booleans())
    assume(not drop_last or batch <= num_samples)
    return {
        "num_samples": num_samples,
        "global_batch_size": batch,
        "micro_batch_size": draw(st.none() | st.integers(1, 20)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "drop_last": drop_last,
    }


def two_epochs(plan: Plan) -> range:
    return range(2 * plan.epoch_schedule.steps(0))


def samples(plan: Plan, global_batch: GlobalBatch) -> list[int]:
    """What one rank trains on in a global batch."""
    return [index for part in plan.indices(global_batch) for index in part.tolist()]


# -- the order -----------------------------------------------------------------------------------


@LAWS
@given(run=runs(), epoch=st.integers(0, 1000))
def test_the_order_of_an_epoch_is_a_permutation(run: dict[str, Any], epoch: int) -> None:
    order = Plan(**run).order(epoch)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(run["num_samples"]))


def test_orders_differ_by_epoch_and_by_seed_and_by_nothing_else() -> None:
    def order(seed: int, epoch: int, **arguments: Any) -> tuple[int, ...]:
        plan = Plan(num_samples=200, global_batch_size=16, seed=seed, **arguments)
        return tuple(plan.order(epoch).tolist())

    pairs = list(itertools.product(range(5), range(5)))
    assert len({order(*pair) for pair in pairs}) == len(pairs)
    assert order(3, 4, rank=1, world_size=2, micro_batch_size=4, drop_last=True) == order(3, 4)


def test_an_order_neither_reads_nor_moves_the_global_generator() -> None:
    plan = Plan(num_samples=97, global_batch_size=8, seed=11)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = plan.order(21).clone()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for epoch in range(22, 30):  # whatever is remembered is forgotten by now
        plan.order(epoch)
    assert torch.equal(plan.order(21), first)


@pytest.mark.process
def test_an_order_is_the_same_in_another_process() -> None:
    """Law: nothing depends on hash randomisation or on what ran before."""
    code = (
        "from data.loading.order import Plan; "
        "print(Plan(num_samples=50, global_batch_size=8, seed=7).order(3).tolist())"
    )
    finished = run_code(code, env={"PYTHONHASHSEED": "123"})
    here = Plan(num_samples=50, global_batch_size=8, seed=7).order(3).tolist()
    assert finished.stdout.strip() == str(here)


def test_derived_seeds_fit_every_generator_and_differ_by_purpose() -> None:
    purposes = [(s, w, e) for s in range(10) for w in ("order", "sample") for e in range(10)]
    seeds = [derive_seed(*parts) for parts in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "order", 2) == derive_seed(1, "order", 2)


# -- global batches
# -------------------------------------------------------------------------------------


@LAWS
@given(run=runs(), world_size=st.integers(1, 7))
def test_the_ranks_together_train_on_each_sample_of_a_global_batch_once(
    run: dict[str, Any], world_size: int
) -> None:
    """Law: over all ranks, global batch s of epoch e is order(e)[s * G : (s + 1) * G], whatever
    W."""
    size = run["global_batch_size"]
    assume(world_size <= size)
    plans = [Plan(**run, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index in two_epochs(plans[0]):
        epoch, step = divmod(index, plans[0].epoch_schedule.steps(0))
        global_batches = [plan.global_batch(index) for plan in plans]
        found = [i for p, w in zip(plans, global_batches, strict=True) for i in samples(p, w)]
        expected = plans[0].order(epoch)[step * size : (step + 1) * size].tolist()
        assert found == expected
        described = {(w.number, w.epoch, w.start, w.size) for w in global_batches}
        assert described == {(index, epoch, step * size, len(expected))}


@LAWS
@given(run=runs(), world_size=st.integers(1, 7))
def test_ranks_get_shares_that_differ_by_one_sample_at_most(
    run: dict[str, Any], world_size: int
) -> None:
    assume(world_size <= run["global_batch_size"])
    plans = [Plan(**run, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index in range(plans[0].epoch_schedule.steps(0)):
        shares = [sum(m.size for m in plan.global_batch(index).micro_batches) for plan in plans]
        assert max(shares) - min(shares) <= 1


@LAWS
@given(run=runs(), world_size=st.integers(1, 7), data=st.data())
def test_a_micro_batch_keeps_to_its_limit_and_to_its_shape(
    run: dict[str, Any], world_size: int, data: st.DataObject
) -> None:
    """Law: at most micro_batch_size samples; only the last one of a share may be smaller."""
    assume(world_size <= run["global_batch_size"])
    rank = data.draw(st.integers(0, world_size - 1))
    plan = Plan(**run, rank=rank, world_size=world_size)
    limit = run["micro_batch_size"] or run["global_batch_size"]
    smallest = min(m.size for i in two_epochs(plan) for m in plan.global_batch(i).micro_batches)
    assert plan.micro_batch_sizes[0] == smallest
    for index in two_epochs(plan):
        global_batch = plan.global_batch(index)
        sizes = [micro.size for micro in global_batch.micro_batches]
        assert [len(part) for part in plan.indices(global_batch)] == sizes
        assert all(size <= limit for size in sizes)
        assert run["micro_batch_size"] is not None or len(sizes) == 1
        assert len(set(sizes[:-1])) <= 1
    everybody = [Plan(**run, rank=rank, world_size=world_size) for rank in range(world_size)]
    most = max(len(other.largest_global_batch.micro_batches) for other in everybody)
    if plan.largest_global_batch.size == run["global_batch_size"]:
        assert [other.micro_batches_per_step for other in everybody] == [most] * world_size


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_samples": 12, "global_batch_size": 4, "micro_batch_size": 2}, 2),
        ({"num_samples": 13, "global_batch_size": 4, "micro_batch_size": 2}, 1),
        ({"num_samples": 13, "global_batch_size": 4, "drop_last": True}, 4),
        ({"num_samples": 2, "global_batch_size": 3, "micro_batch_size": 2}, 2),
        ({"num_samples": 9, "global_batch_size": 4, "rank": 0, "world_size": 2}, 0),
        ({"num_samples": 9, "global_batch_size": 4, "rank": 1, "world_size": 2}, 1),
    ],
)
def test_the_smallest_micro_batch_is_one_that_occurs(
    arguments: dict[str, Any], expected: int
) -> None:
    """Law: the short global batch counts, and a full one that never comes does not."""
    assert Plan(**arguments).micro_batch_sizes[0] == expected


def check_flags(micro_batches: tuple[MicroBatch, ...]) -> None:
    """Law: shards are contiguous runs that begin and end once, and the global batch ends with
    them."""
    assert micro_batches
    ends = [micro.ends_global_batch for micro in micro_batches]
    assert ends == [False] * (len(ends) - 1) + [True]
    shards = [micro.shard for micro in micro_batches]
    assert shards == sorted(shards)
    for before, after in itertools.pairwise(micro_batches):
        assert before.stop == after.start
    for _, group in itertools.groupby(micro_batches, key=lambda micro: micro.shard):
        parts = list(group)
        assert [p.begins_shard for p in parts] == [True] + [False] * (len(parts) - 1)
        assert [p.ends_shard for p in parts] == [False] * (len(parts) - 1) + [True]


@LAWS
@given(run=runs(), world_size=st.integers(1, 7))
def test_flags_mark_where_shards_and_global_batches_begin_and_end(
    run: dict[str, Any], world_size: int
) -> None:
    """Law: every rank takes part in every step, with an empty micro-batch if need be."""
    assume(world_size <= run["global_batch_size"])
    for rank in range(world_size):
        plan = Plan(**run, rank=rank, world_size=world_size)
        for index in range(plan.epoch_schedule.steps(0)):
            micro_batches = plan.global_batch(index).micro_batches
            check_flags(micro_batches)
            assert {micro.shard for micro in micro_batches} == {rank}


@LAWS
@given(run=runs())
def test_an_epoch_leaves_out_only_what_drop_last_says(run: dict[str, Any]) -> None:
    plan = Plan(**run)
    total, size = run["num_samples"], run["global_batch_size"]
    sizes = [plan.global_batch(index).size for index in range(plan.epoch_schedule.steps(0))]
    assert all(s == size for s in sizes[:-1])
    assert sum(sizes) == (total // size * size if run["drop_last"] else total)
    assert all(size > 0 for size in sizes)
    assert plan.global_batch(plan.epoch_schedule.steps(0)).epoch == 1


@LAWS
@given(run=runs(), index=st.integers(0, 400))
def test_samples_before_a_global_batch_are_the_sizes_of_those_before_it(
    run: dict[str, Any], index: int
) -> None:
    plan = Plan(**run)
    index = index % (3 * plan.epoch_schedule.steps(0) + 1)
    assert plan.epoch_schedule.samples_before(index) == sum(
        plan.global_batch(i).size for i in range(index)
    )


@pytest.mark.parametrize(
    ("num_samples", "batch", "drop_last", "steps", "last"),
    [
        (60_000, 64, False, 938, 32),
        (60_000, 64, True, 937, 64),
        (128, 64, False, 2, 64),
        (128, 64, True, 2, 64),
        (10, 64, False, 1, 10),
        (1, 1, True, 1, 1),
    ],
)
def test_steps_per_epoch_count_the_short_last_batch(
    num_samples: int, batch: int, drop_last: bool, steps: int, last: int
) -> None:
    plan = Plan(num_samples=num_samples, global_batch_size=batch, drop_last=drop_last)
    assert plan.epoch_schedule.steps(0) == steps
    assert plan.global_batch(steps - 1).size == last


# -- exact reduction -----------------------------------------------------------------------------


def shard_cuts(plan: Plan, index: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    micro_batches = plan.global_batch(index).micro_batches
    for shard, group in itertools.groupby(micro_batches, key=lambda micro: micro.shard):
        yield shard, [(micro.start, micro.stop) for micro in group]


@LAWS
@given(run=runs(), shards=st.sampled_from([1, 2, 4, 8, 16]))
def test_under_exact_reduction_a_shard_is_the_same_on_any_number_of_ranks(
    run: dict[str, Any], shards: int
) -> None:
    """Law: bounds and micro-batches of shard i do not depend on the world size."""
    assume(shards <= run["global_batch_size"])
    alone = Plan(**run, shards=shards)
    for world_size in [w for w in (1, 2, 4, 8) if w <= shards]:
        plans = [
            Plan(**run, shards=shards, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for index in range(alone.epoch_schedule.steps(0)):
            together = [cut for plan in plans for cut in shard_cuts(plan, index)]
            assert together == list(shard_cuts(alone, index))
            assert [shard for shard, _ in together] == list(range(shards))
            for plan in plans:
                check_flags(plan.global_batch(index).micro_batches)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_under_exact_reduction_a_rank_holds_a_contiguous_run_of_full_shards(
    world_size: int,
) -> None:
    for rank in range(world_size):
        plan = Plan(
            num_samples=64, global_batch_size=64, shards=8, rank=rank, world_size=world_size
        )
        per_rank = 8 // world_size
        expected = {s: [(8 * s, 8 * s + 8)] for s in range(rank * per_rank, (rank + 1) * per_rank)}
        assert dict(shard_cuts(plan, 0)) == expected


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"global_batch_size": 3, "world_size": 4}, "train.global_batch_size: given 3"),
        ({"world_size": 3, "shards": 8}, "number of ranks: given 3"),
        ({"world_size": 3, "shards": 12}, "number of ranks: given 3"),
        ({"world_size": 6, "shards": 8}, "number of ranks: given 6"),
        ({"world_size": 16, "shards": 8}, "number of ranks: given 16"),
        ({"num_samples": 19, "global_batch_size": 20, "drop_last": True}, "given 20"),
        ({"num_samples": 0}, "train.global_batch_size: given 32"),
    ],
)
def test_a_plan_that_leaves_a_rank_or_an_epoch_without_samples_is_refused(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        Plan(**({"num_samples": 100, "global_batch_size": 32} | arguments))
    assert said in str(caught.value)
    assert "expected" in str(caught.value)


def test_as_many_ranks_as_samples_in_a_batch_are_enough() -> None:
    plans = [Plan(num_samples=9, global_batch_size=4, rank=r, world_size=4) for r in range(4)]
    assert [[m.size for m in plan.global_batch(0).micro_batches] for plan in plans] == [[1]] * 4
    assert sum(m.size for plan in plans for m in plan.global_batch(2).micro_batches) == 1


@LAWS
@given(run=runs(), world_size=st.integers(1, 5))
def test_even_ranks_go_through_the_model_equally_often(
    run: dict[str, Any], world_size: int
) -> None:
    """Law: the samples of a rank are those of an uneven plan, in micro-batches no larger."""
    assume(world_size <= run["global_batch_size"])
    plans = [Plan(**run, rank=rank, world_size=world_size, even=True) for rank in range(world_size)]
    most = run["micro_batch_size"] or run["global_batch_size"]
    for index in {0, plans[0].epoch_schedule.steps(0) - 1}:
        cuts = [plan.global_batch(index).micro_batches for plan in plans]
        assert len({len(cut) for cut in cuts}) == 1
        for plan, cut in zip(plans, cuts, strict=True):
            uneven = replace(plan, even=False).global_batch(index).micro_batches
            assert len(cut) >= len(uneven)
            assert (cut[0].start, cut[-1].stop) == (uneven[0].start, uneven[-1].stop)
            assert all(a.stop == b.start for a, b in itertools.pairwise(cut))
            assert all(0 <= micro.size <= most for micro in cut)
            assert [micro.ends_global_batch for micro in cut] == [False] * (len(cut) - 1) + [True]
            assert [micro.begins_shard for micro in cut] == [True] + [False] * (len(cut) - 1)


# -- evaluation ----------------------------------------------------------------------------------


@LAWS
@given(num_samples=st.integers(0, 300), batch_size=st.integers(1, 70))
def test_evaluation_batches_cover_each_sample_once(num_samples: int, batch_size: int) -> None:
    bounds = evaluation_batches(num_samples, batch_size)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(num_samples))
    assert all(0 < stop - start <= batch_size for start, stop in bounds)
    assert all(stop - start == batch_size for start, stop in bounds[:-1])


@settings(max_examples=100, deadline=None)
@given(
    num_samples=st.integers(1, 90),
    size=st.integers(1, 20),
    later=st.integers(1, 20),
    drop_last=st.booleans(),
    number=st.integers(0, 40),
    count=st.integers(1, 9),
)
def test_global_batches_in_a_row_are_global_batches_one_by_one(
    num_samples: int, size: int, later: int, drop_last: bool, number: int, count: int
) -> None:
    """Law: they are of one epoch and one size, and as many of them as asked for if there are."""
    if drop_last and max(size, later) > num_samples:
        return
    plan = Plan(
        num_samples=num_samples,
        global_batch_size=size,
        batch_schedule=((2, later),),
        drop_last=drop_last,
        micro_batch_size=3,
    )
    found = plan.next_global_batches(number, count)
    fresh = [plan._find(number + index) for index in range(count)]
    alike = [w for w in fresh if (w.epoch, w.size) == (fresh[0].epoch, fresh[0].size)]
    assert found == fresh[: len(found)]
    assert len(found) == len(alike)
