"""`train.auto_batch`: which micro-batches are tried, and what counts as too large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from configs.errors import InputError
from configs.schema import RunConfig
from configs.schema_execution import ParallelConfig
from configs.schema_training import TrainConfig
from trainer.auto_batch import candidates, fit_micro_batch
from trainer.ranks.runtime import Runtime

ALONE = Runtime(launcher="python")


def config(size: int = 48, **keys: Any) -> RunConfig:
    return RunConfig(train=TrainConfig(global_batch_size=size, auto_batch=True, **keys))


@pytest.mark.parametrize(
    ("given", "world_size", "expected"),
    [
        (config(48), 1, [48, 24, 16, 12, 8, 6, 4, 3, 2, 1]),
        (config(48), 2, [24, 16, 12, 8, 6, 4, 3, 2, 1]),
        (config(48), 5, [12, 8, 6, 4, 3, 2, 1]),
        (config(48, micro_batch_size=8), 2, [8, 6, 4, 3, 2, 1]),
        (config(7), 2, [7, 1]),
    ],
)
def test_candidates_divide_the_global_batch_and_begin_with_the_share_of_a_rank(
    given: RunConfig, world_size: int, expected: list[int]
) -> None:
    assert candidates(given, world_size, 10_000) == expected


def test_candidates_divide_every_batch_of_a_schedule_and_begin_with_the_largest_share() -> None:
    growing = config(48, batch_schedule={2: 96, 4: 120})
    assert candidates(growing, 1, 10_000) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert candidates(growing, 8, 10_000) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert candidates(growing, 16, 10_000) == [8, 6, 4, 3, 2, 1]


def test_under_exact_reduction_the_share_is_that_of_a_shard() -> None:
    exact = replace(config(48), parallel=ParallelConfig(reduction="exact", shards=8))
    assert candidates(exact, 2, 10_000) == [6, 4, 3, 2, 1]


def refuse_above(limit: int, error: Exception) -> tuple[Callable[[RunConfig], None], list[int]]:
    tried: list[int] = []

    def step(trial: RunConfig) -> None:
        size = trial.train.micro_batch_size
        assert size is not None
        tried.append(size)
        if size > limit:
            raise error

    return step, tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_the_largest_one_that_fits_is_taken_and_the_global_batch_stays(error: Exception) -> None:
    step, tried = refuse_above(10, error)
    found = fit_micro_batch(config(48), ALONE, 10_000, step)
    assert found.train.micro_batch_size == 8
    assert found.train.global_batch_size == 48
    assert tried == [48, 24, 16, 12, 8]


def test_any_other_error_is_the_models_own() -> None:
    step, tried = refuse_above(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit_micro_batch(config(48), ALONE, 10_000, step)
    assert tried == [48]


def test_a_real_allocation_that_cannot_be_had_is_recognised() -> None:
    """Law: torch's own error of a CPU that refuses an exabyte."""

    def step(trial: RunConfig) -> None:
        size = trial.train.micro_batch_size
        assert size is not None
        torch.empty(2**57 if size > 4 else size)

    assert fit_micro_batch(config(48), ALONE, 10_000, step).train.micro_batch_size == 4


def test_where_nothing_fits_the_run_is_refused() -> None:
    step, _ = refuse_above(0, MemoryError())
    with pytest.raises(InputError, match=r"train\.auto_batch"):
        fit_micro_batch(config(48), ALONE, 10_000, step)
