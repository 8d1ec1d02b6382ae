"""Every loader gives the batches of the plan, whoever fetches them and wherever they start."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.schema import DataConfig
from data.loading.host_loader import HostLoader
from data.loading.loader import Loader, build_loader
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader
from data.samples import ArrayDataset, Batch
from data.structures import tensors
from tests.support.loading import (
    BATCH,
    CPU,
    NUM_TEST,
    NUM_TRAIN,
    WORKERS,
    Augmented,
    Counting,
    Failing,
    PerSample,
    assert_samples,
    expected_batches,
    host,
    make_arrays,
    make_plan,
    take,
)


def make_loader(kind: str, plan: Plan) -> Loader:
    if kind == "resident":
        held_out = {"test": make_arrays(NUM_TEST)}
        return ResidentLoader(make_arrays(NUM_TRAIN), held_out, plan=plan, device=CPU)
    source, workers = kind.split("-")
    if source == "arrays":
        return host(plan, int(workers))
    return host(plan, int(workers), PerSample(NUM_TRAIN), PerSample(NUM_TEST))


WITH_WORKERS = (pytest.param(k, marks=pytest.mark.process) for k in ("arrays-2", "samples-2"))
KINDS = pytest.mark.parametrize("kind", ["resident", "arrays-0", "samples-0", *WITH_WORKERS])


def test_a_block_of_several_inputs_is_gathered_into_an_earlier_one() -> None:
    """Recorded steps find the samples of every row in the same memory."""
    data = make_arrays(NUM_TRAIN)
    several = ArrayDataset({"pixels": data.inputs, "number": data.targets}, data.targets)
    plan = make_plan()
    loader = ResidentLoader(several, {}, plan=plan, device=CPU)
    block = loader.block([plan.global_batch(0)])
    memory = [part.data_ptr() for part in tensors(block)]
    found = loader.block([plan.global_batch(1)], out=block)
    expected = loader.block([plan.global_batch(1)])
    assert [part.data_ptr() for part in tensors(found)] == memory
    for mine, theirs in zip(tensors(block), tensors(expected), strict=True):
        assert torch.equal(mine, theirs)


# -- training ------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("global_batch", [0, 3, 4, 5, 13])
def test_every_loader_streams_the_plan_from_any_global_batch_across_epochs(
    kind: str, global_batch: int
) -> None:
    """Law: stream(w) is the plan's micro-batches from w on, epoch after epoch."""
    plan = make_plan(rank=1, world_size=2, micro_batch_size=4)
    count = 4 * plan.micro_batches_per_step + 6
    batches = take(make_loader(kind, plan).stream(global_batch), count)
    assert len(batches) == count
    for batch, indices in zip(batches, expected_batches(plan, global_batch, count), strict=True):
        assert_samples(batch, indices)


@pytest.mark.parametrize("kind", ["resident", "arrays-0", "samples-0"])
def test_every_loader_streams_the_shards_of_exact_reduction(kind: str) -> None:
    plan = make_plan(rank=1, world_size=2, shards=4, micro_batch_size=2, drop_last=True)
    batches = take(make_loader(kind, plan).stream(2), 30)
    for batch, indices in zip(batches, expected_batches(plan, 2, 30), strict=True):
        assert_samples(batch, indices)


@KINDS
def test_a_rank_without_samples_in_a_short_batch_gets_an_empty_one(kind: str) -> None:
    """Law: every rank takes part in every step, whatever the data set."""
    plan = make_plan(num_samples=BATCH + 1, rank=0, world_size=4)
    sizes = [part.numel() for part in plan.indices(plan.global_batch(1))]
    assert sizes == [0], "the case this test is about"
    batches = take(make_loader(kind, plan).stream(0), 3)
    for batch, indices in zip(batches, expected_batches(plan, 0, 3), strict=True):
        assert_samples(batch, indices)


def test_batches_are_gathered_whole() -> None:
    """Law: one gather per micro-batch, and never a sample by itself."""
    plan = make_plan(micro_batch_size=5)
    sizes = [len(part) for part in expected_batches(plan, 0, 7)]
    for make in (
        lambda train: ResidentLoader(train, {"test": train}, plan=plan, device=CPU),
        lambda train: host(plan, 0, train, train),
    ):
        dataset = Counting(NUM_TRAIN)
        take(make(dataset).stream(0), 7)
        assert dataset.gathers == sizes
        assert dataset.reads == 0


def test_streams_of_one_loader_do_not_disturb_each_other() -> None:
    """Law: the position is the stream's own; nothing is kept in the loader."""
    plan = make_plan()
    loader = host(plan, 0)
    first, second = loader.stream(0), loader.stream(2)
    for expected in zip(expected_batches(plan, 0, 6), expected_batches(plan, 2, 6), strict=True):
        assert_samples(next(first), expected[0])
        assert_samples(next(second), expected[1])


# -- evaluation ----------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_covers_each_sample_once_in_the_same_batches_on_any_ranks(
    kind: str, world_size: int
) -> None:
    """Law: batch i holds samples [i * B, (i + 1) * B), and one rank of any number gets it."""
    found: dict[int, Batch] = {}
    for rank in range(world_size):
        plan = make_plan(rank=rank, world_size=world_size)
        for index, batch in make_loader(kind, plan).evaluation("test", 5, rank, world_size):
            assert index not in found
            found[index] = batch
    assert sorted(found) == [0, 1, 2, 3, 4]
    for index, batch in found.items():
        assert_samples(batch, list(range(5 * index, min(5 * index + 5, NUM_TEST))))


@KINDS
def test_evaluation_again_gives_the_same_after_an_abandoned_one(kind: str) -> None:
    loader = make_loader(kind, make_plan())
    abandoned = loader.evaluation("test", 5, 0, 1)
    next(abandoned), next(abandoned)
    del abandoned
    for _ in range(2):
        batches = list(loader.evaluation("test", 5, 0, 1))
        assert [index for index, _ in batches] == [0, 1, 2, 3, 4]
        for index, batch in batches:
            assert_samples(batch, list(range(5 * index, min(5 * index + 5, NUM_TEST))))


@KINDS
def test_evaluation_with_another_batch_size_is_another_evaluation(kind: str) -> None:
    loader = make_loader(kind, make_plan())
    sizes = [
        [len(batch[1]) for _, batch in loader.evaluation("test", b, 0, 1)] for b in (5, 10, 23)
    ]
    assert sizes == [[5, 5, 5, 5, 3], [10, 10, 3], [23]]


@KINDS
def test_a_rank_beyond_the_last_evaluation_batch_gets_none(kind: str) -> None:
    assert list(make_loader(kind, make_plan()).evaluation("test", 20, 2, 3)) == []


# -- random numbers ------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def rng_states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, np.asarray(keys).tolist(), rest, random.getstate()


def augmented(workers: int, global_batch: int, count: int, **arguments: Any) -> list[Tensor]:
    loader = host(make_plan(**arguments), workers, Augmented(NUM_TRAIN), Augmented(NUM_TEST))
    return [inputs for inputs, *_ in take(loader.stream(global_batch), count)]


@WORKERS
@pytest.mark.parametrize("global_batch", [0, 3, 6])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(
    workers: int, global_batch: int
) -> None:
    """Law: not on workers, nor on where the run was interrupted, nor on what was drawn before."""
    reference = augmented(0, 0, 10)
    seed_everything(global_batch + 1)
    found = augmented(workers, global_batch, 10 - global_batch)
    for batch, expected in zip(found, reference[global_batch:], strict=True):
        assert torch.equal(batch, expected)


def by_sample(batches: list[Tensor]) -> dict[int, list[float]]:
    return {int(row[0]): row[1:].tolist() for batch in batches for row in batch}


def test_augmentation_does_not_depend_on_the_number_of_ranks_or_micro_batches() -> None:
    """Law: a sample is augmented alike whichever rank reads it, in whatever company."""
    alone = by_sample(augmented(0, 0, 5))
    shared: dict[int, list[float]] = {}
    for rank in range(3):
        arguments = {"rank": rank, "world_size": 3, "micro_batch_size": 2}
        plan = make_plan(**arguments)
        count = sum(
            len(plan.global_batch(i).micro_batches) for i in range(plan.epoch_schedule.steps(0))
        )
        shared |= by_sample(augmented(0, 0, count, **arguments))
    assert sorted(shared) == list(range(NUM_TRAIN))
    assert shared == alone


def test_augmentation_differs_between_epochs_seeds_and_samples() -> None:
    first, second = by_sample(augmented(0, 0, 5)), by_sample(augmented(0, 5, 5))
    other = by_sample(augmented(0, 0, 5, seed=4))
    assert sorted(first) == sorted(second) == sorted(other) == list(range(NUM_TRAIN))
    columns = [list(zip(*drawn.values(), strict=True)) for drawn in (first, second, other)]
    for generator in range(3):
        values = [value for column in columns for value in column[generator]]
        assert len(set(values)) == 3 * NUM_TRAIN


@WORKERS
@pytest.mark.parametrize("dataset", [Augmented, PerSample, make_arrays])
def test_iterating_leaves_the_global_generators_untouched(dataset: Any, workers: int) -> None:
    """Law: dropout draws the same numbers whatever the data loading does."""
    loader = host(make_plan(), workers, dataset(NUM_TRAIN), dataset(NUM_TEST))
    before = rng_states()
    take(loader.stream(0), 7)
    list(loader.evaluation("test", 5, 0, 1))
    assert rng_states() == before


def test_a_failing_sample_leaves_the_global_generators_untouched() -> None:
    before = rng_states()
    with pytest.raises(RuntimeError, match="mine"):
        next(host(make_plan(), 0, Failing(NUM_TRAIN)).stream(0))
    assert rng_states() == before


@pytest.mark.process
def test_an_evaluation_of_a_random_data_set_repeats_itself() -> None:
    results = []
    for workers in (0, 2):
        loader = host(make_plan(), workers, Augmented(NUM_TRAIN), Augmented(NUM_TEST))
        for _ in range(2):
            results.append(torch.cat([b[0] for _, b in loader.evaluation("test", 5, 0, 1)]))
    assert all(torch.equal(result, results[0]) for result in results)


# -- the choice of a loader ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "dataset", "kind"),
    [
        ({}, make_arrays, ResidentLoader),
        ({"placement": "device"}, make_arrays, ResidentLoader),
        ({"placement": "host"}, make_arrays, HostLoader),
        ({"workers": 2}, make_arrays, HostLoader),
        ({}, PerSample, HostLoader),
        ({"placement": "host", "workers": 1}, PerSample, HostLoader),
    ],
)
def test_arrays_live_on_the_device_unless_told_otherwise(
    options: dict[str, Any], dataset: Any, kind: type
) -> None:
    loader = build_loader(
        DataConfig(**options),
        dataset(NUM_TRAIN),
        {"test": dataset(NUM_TEST)},
        plan=make_plan(),
        device=CPU,
    )
    assert isinstance(loader, kind)
    assert getattr(loader, "workers", 0) == options.get("workers", 0)
