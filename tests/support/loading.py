"""Samples that tell their index, as arrays and as a user's data set, and loaders of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.datasets import ArrayDataset, MapDataset
from data.loading.host_loader import HostLoader
from data.loading.order import Plan
from data.samples import Batch

CPU = torch.device("cpu")
NUM_TRAIN, NUM_TEST, BATCH = 53, 23, 12
WORKERS = pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])


def make_arrays(count: int, dtype: torch.dtype = torch.uint8) -> ArrayDataset:
    """Samples that tell their index."""
    inputs = (torch.arange(count).reshape(-1, 1, 1, 1) * torch.ones(1, 1, 3, 2)).to(dtype)
    return ArrayDataset(inputs, torch.arange(count) * 2)


class PerSample:
    """A user's data set: numpy images and plain numbers, one at a time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return np.full((1, 3, 2), index, np.uint8), index * 2


class Augmented(PerSample):
    """One that draws from every global generator."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
        return torch.tensor([float(index), *drawn], dtype=torch.float64), index * 2


class Failing(Augmented):
    """One with a bug."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        super().__getitem__(index)
        raise RuntimeError("mine")


class Counting(ArrayDataset):
    """Arrays that note how they are read."""

    def __init__(self, count: int) -> None:
        made = make_arrays(count)
        super().__init__(made.inputs, made.targets)
        self.gathers: list[int] = []
        self.reads = 0

    def gather(self, indices: Tensor) -> Batch:
        self.gathers.append(len(indices))
        return super().gather(indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        return super().__getitem__(index)

    def to(self, device: torch.device) -> ArrayDataset:
        return self


def make_plan(**arguments: Any) -> Plan:
    defaults = {"num_samples": NUM_TRAIN, "global_batch_size": BATCH, "seed": 3}
    return Plan(**(defaults | arguments))


def host(
    plan: Plan, workers: int, train: MapDataset | None = None, test: MapDataset | None = None
) -> HostLoader:
    return HostLoader(
        make_arrays(NUM_TRAIN) if train is None else train,
        {"test": make_arrays(NUM_TEST) if test is None else test},
        plan=plan,
        device=CPU,
        workers=workers,
        prefetch_factor=2,
    )


def expected_batches(plan: Plan, global_batch: int, count: int) -> list[list[int]]:
    """Sample indices of the first micro-batches from a global batch on."""
    parts = (
        part.tolist()
        for w in itertools.count(global_batch)
        for part in plan.indices(plan.global_batch(w))
    )
    return list(itertools.islice(parts, count))


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    """The first batches, in memory of their own."""
    return [batch.map(Tensor.clone) for batch in itertools.islice(batches, count)]


def assert_samples(batch: Batch, indices: list[int]) -> None:
    """The batch holds these samples in this order, in the types the model is fed with."""
    inputs, targets, size = batch
    assert size == len(indices)
    assert inputs.shape == (len(indices), 1, 3, 2)
    assert inputs.dtype == torch.uint8
    assert inputs[:, 0, 0, 0].tolist() == indices
    assert targets.dtype == torch.int64
    assert targets.tolist() == [2 * index for index in indices]
