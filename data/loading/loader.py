"""Batches of a plan, from host memory through a DataLoader or straight from device memory."""

from __future__ import annotations

import atexit
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from configs.errors import InputError
from configs.schema import DataConfig
from data.loading.fetch import (
    Fetcher,
    Request,
    TrainRequests,
    as_is,
    delivered,
    end_workers,
    start_worker,
)
from data.loading.order import GlobalBatch, Plan, derive_seed, evaluation_batches
from data.loading.prefetch import prefetch
from data.samples import ArrayDataset, Batch, MapDataset

LONGEST_TMPDIR = 75
"""108 characters of an AF_UNIX path, less `/pymp-xxxxxxxx/listener-xxxxxxxx`."""
RESIDENT_FRACTION = 0.25
"""Part of the free device memory that `data.placement: auto` gives to the data."""


def zeros_of(example: Batch, size: int, device: torch.device) -> Batch:
    """A batch of `size` samples of zeros, in the shapes and types of an example of any size."""
    inputs, targets = (part.new_zeros(size, *part.shape[1:], device=device) for part in example)
    return inputs, targets


class Loader(Protocol):
    """Batches on the device, in the order of a plan."""

    def stream(self, global_batch: int) -> Iterator[Batch]:
        """This rank's micro-batches from global batch `global_batch` on, epoch after epoch,
        endlessly."""
        ...

    def evaluation(
        self, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        """This rank's test batches, each with its index among all of them."""
        ...


class ResidentLoader:
    """Data that lives where it is used: two gathers per micro-batch, no copies and no processes."""

    def __init__(
        self, train: ArrayDataset, test: ArrayDataset, *, plan: Plan, device: torch.device
    ) -> None:
        self.train = train.to(device)
        self.test = test.to(device)
        self.plan = plan
        self.device = device
        self.epoch, self.order = -1, torch.empty(0)
        self.next_epoch, self.next_order = -1, torch.empty(0)

    def stream(self, global_batch: int) -> Iterator[Batch]:
        while True:
            current = self.plan.global_batch(global_batch)
            order = self._order(current.epoch)
            for micro in current.micro_batches:
                start = current.start + micro.start
                yield self.train.gather(order.narrow(0, start, micro.size))
            global_batch += 1

    def block(self, global_batches: Sequence[GlobalBatch], out: Batch | None = None) -> Batch:
        """This rank's samples of some global batches of one epoch, one after the other."""
        order = self._order(global_batches[0].epoch)
        spans = [
            (w.start + w.micro_batches[0].start, w.start + w.micro_batches[-1].stop)
            for w in global_batches
        ]
        if all(before[1] == after[0] for before, after in itertools.pairwise(spans)):
            return self.train.gather(order[spans[0][0] : spans[-1][1]], out)
        return self.train.gather(torch.cat([order[slice(*span)] for span in spans]), out)

    def look_ahead(self, epoch: int) -> None:
        """Have the order of an epoch ready before somebody has to wait for it."""
        if epoch != self.next_epoch:
            order = self.plan.order(epoch)
            if self.device.type == "cuda":
                order = order.pin_memory()
            self.next_epoch, self.next_order = epoch, order.to(self.device, non_blocking=True)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self.epoch:
            self.look_ahead(epoch)
            self.epoch, self.order = epoch, self.next_order
        return self.order

    def evaluation(
        self, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        bounds = evaluation_batches(len(self.test), batch_size)
        for index in range(rank, len(bounds), world_size):
            span = slice(*bounds[index])
            yield index, (self.test.inputs[span], self.test.targets[span])


class HostLoader:
    """Data in host memory: a DataLoader with seeded, persistent, pinned workers, copied ahead."""

    def __init__(
        self,
        train: MapDataset,
        test: MapDataset,
        *,
        plan: Plan,
        device: torch.device,
        workers: int,
        prefetch_factor: int,
        pinned: bool = True,
    ) -> None:
        self.train = train
        self.test = test
        self.plan = plan
        self.device = device
        self.workers = workers
        self.prefetch_factor = prefetch_factor
        self.pinned = pinned and device.type == "cuda"
        if workers:
            _check_sockets()
            atexit.register(end_workers)
        self.evaluators: dict[int, DataLoader[Any]] = {}  # kept, and their workers with them

    def stream(self, global_batch: int) -> Iterator[Batch]:
        requests = TrainRequests(self.plan, global_batch)
        return prefetch(delivered(self._loader(self.train, requests)), self.device)

    def evaluation(
        self, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        bounds = evaluation_batches(len(self.test), batch_size)
        mine = range(rank, len(bounds), world_size)
        if batch_size not in self.evaluators:
            requests = [Request(torch.arange(*bounds[index]), 0) for index in mine]
            self.evaluators[batch_size] = self._loader(self.test, requests)
        batches = delivered(self.evaluators[batch_size])
        return zip(mine, prefetch(batches, self.device), strict=True)

    def _loader(self, dataset: MapDataset, requests: Any) -> DataLoader[Any]:
        return DataLoader(
            Fetcher(dataset, self.plan.seed),  # type: ignore[arg-type]
            batch_sampler=requests,
            collate_fn=as_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=self.prefetch_factor if self.workers else None,
            pin_memory=self.pinned,
            worker_init_fn=start_worker,
            # A generator of its own: iterating must not draw from the stream dropout uses.
            generator=torch.Generator().manual_seed(derive_seed(self.plan.seed, "workers")),
        )


def placement(
    config: DataConfig, train: MapDataset, test: MapDataset, free_bytes: int | None
) -> tuple[bool, str]:
    """Whether the data set lives on the device that trains, and why.

    Args:
        config: `data.placement` and `data.workers`.
        train: The training set.
        test: The test set.
        free_bytes: Of the device's memory; None where it is the host's.

    Raises:
        InputError: If data that is read sample by sample is to live on the device.
    """
    arrays = isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset)
    if config.placement == "device" and not arrays:
        raise InputError(
            "data.placement",
            given="device",
            expected="auto or host for a data set that is read sample by sample",
            remedy="Only data.datasets.ArrayDataset can live on the device.",
        )
    if not arrays:
        return False, "the data set is read sample by sample"
    if config.placement != "auto":
        return config.placement == "device", f"data.placement {config.placement}"
    if config.workers:
        return False, f"data.workers {config.workers}"
    assert isinstance(train, ArrayDataset)
    assert isinstance(test, ArrayDataset)
    if free_bytes is None or train.num_bytes + test.num_bytes <= RESIDENT_FRACTION * free_bytes:
        return True, "it fits, and has no workers"
    return False, f"it takes more than {RESIDENT_FRACTION:.0%} of the device's free memory"


def build_loader(
    config: DataConfig,
    train: MapDataset,
    test: MapDataset,
    *,
    plan: Plan,
    device: torch.device,
    on_device: bool | None = None,
) -> Loader:
    """How the data reaches the device.

    Args:
        config: Workers, and where the data lives unless `on_device` says so.
        train: The training set.
        test: The test set.
        plan: Who trains on what.
        device: Where batches go.
        on_device: Whether the data lives there; None: as `placement` says.

    Raises:
        InputError: If data that is read sample by sample is to live on the device, or workers could
            not answer.
    """
    if on_device is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        on_device, _ = placement(config, train, test, free)
    if on_device:
        assert isinstance(train, ArrayDataset)
        assert isinstance(test, ArrayDataset)
        return ResidentLoader(train, test, plan=plan, device=device)
    return HostLoader(
        train,
        test,
        plan=plan,
        device=device,
        workers=config.workers,
        prefetch_factor=config.prefetch_factor,
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
