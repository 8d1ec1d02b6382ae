"""Batches read in host memory, by worker processes or by this one, and copied to the device."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from configs.errors import InputError
from data.collate import stack
from data.loading.order import Plan, derive_seed, evaluation_batches
from data.loading.prefetch import prefetch
from data.loading.workers import (
    Fetcher,
    Request,
    TrainRequests,
    as_is,
    delivered,
    end_workers,
    start_worker,
)
from data.samples import Batch, Collate, MapDataset

LONGEST_TMPDIR = 75
"""108 characters of an AF_UNIX path, less `/pymp-xxxxxxxx/listener-xxxxxxxx`."""


class HostLoader:
    """Data in host memory: a DataLoader with seeded, persistent, pinned workers, copied ahead.

    Args:
        train: Training set.
        held_out: What is evaluated on, by name.
        plan: Which samples this rank trains on, and in which order.
        device: Where batches go.
        workers: Worker processes; with 0 this process reads the data.
        prefetch_factor: Batches that each worker reads ahead.
        collate: Makes a batch of samples.
        pinned: Whether batches for a GPU pass through pinned memory.

    Raises:
        InputError: If workers could not answer, because TMPDIR is too long.
    """

    def __init__(
        self,
        train: MapDataset,
        held_out: Mapping[str, MapDataset],
        *,
        plan: Plan,
        device: torch.device,
        workers: int,
        prefetch_factor: int,
        collate: Collate = stack,
        pinned: bool = True,
    ) -> None:
        self.train = train
        self.held_out = held_out
        self.plan = plan
        self.device = device
        self.workers = workers
        self.prefetch_factor = prefetch_factor
        self.collate = collate
        self.pinned = pinned and device.type == "cuda"
        if workers:
            _check_sockets()
            atexit.register(end_workers)
        self.evaluators: dict[
            tuple[str, int], DataLoader[Any]
        ] = {}  # kept, and their workers with them

    def stream(self, global_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches from global batch `global_batch` on, endlessly."""
        requests = TrainRequests(self.plan, global_batch)
        return prefetch(delivered(self._loader(self.train, requests)), self.device)

    def evaluation(
        self, name: str, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        """This rank's batches of a set that is held out, each with its index among all of them."""
        data, key = self.held_out[name], (name, batch_size)
        bounds = evaluation_batches(len(data), batch_size)
        mine = range(rank, len(bounds), world_size)
        if key not in self.evaluators:
            requests = [Request(torch.arange(*bounds[index]), 0) for index in mine]
            self.evaluators[key] = self._loader(data, requests)
        batches = delivered(self.evaluators[key])
        return zip(mine, prefetch(batches, self.device), strict=True)

    def _loader(self, dataset: MapDataset, requests: Any) -> DataLoader[Any]:
        return DataLoader(
            Fetcher(dataset, self.plan.seed, self.collate),  # type: ignore[arg-type]
            batch_sampler=requests,
            collate_fn=as_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=self.prefetch_factor if self.workers else None,
            pin_memory=self.pinned,
            worker_init_fn=partial(start_worker, parent=os.getpid()),
            # A generator of its own: iterating must not draw from the stream dropout uses.
            generator=torch.Generator().manual_seed(derive_seed(self.plan.seed, "workers")),
        )


def _check_sockets() -> None:
    """Workers answer through sockets in TMPDIR, whose paths the system limits: else it hangs."""
    folder = tempfile.gettempdir()
    if len(folder) > LONGEST_TMPDIR:
        raise InputError(
            "TMPDIR",
            given=folder,
            expected=f"a folder of at most {LONGEST_TMPDIR} characters with data.workers",
            remedy="Set TMPDIR=/tmp, or use --data.workers 0.",
        )
