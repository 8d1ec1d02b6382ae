"""Batches of a plan, from host memory through a DataLoader or straight from device memory."""

from __future__ import annotations

import atexit
import multiprocessing
import random
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from configs.errors import InputError
from configs.schema import DataConfig
from data.prefetch import prefetch
from data.sampler import Plan, derive_seed, evaluation_batches
from data.samples import ArrayDataset, BatchDataset, MapDataset

Batch = tuple[Tensor, Tensor]
"""Inputs `(B, ...)` and targets `(B,)`, on the device."""

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

    def stream(self, window: int) -> Iterator[Batch]:
        """This rank's micro-batches from global batch `window` on, epoch after epoch, endlessly."""
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

    def stream(self, window: int) -> Iterator[Batch]:
        epoch, order = -1, torch.empty(0)
        while True:
            current = self.plan.window(window)
            if current.epoch != epoch:
                epoch, order = current.epoch, self.plan.order(current.epoch).to(self.device)
            for micro in current.micro_batches:
                start = current.start + micro.start
                yield self.train.gather(order.narrow(0, start, micro.size))
            window += 1

    def evaluation(
        self, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        bounds = evaluation_batches(len(self.test), batch_size)
        for index in range(rank, len(bounds), world_size):
            span = slice(*bounds[index])
            yield index, (self.test.inputs[span], self.test.targets[span])


@dataclass(frozen=True, slots=True)
class Request:
    """What a worker is asked for: samples by index, in a given epoch."""

    indices: Tensor
    epoch: int


class Fetcher:
    """Answers requests inside a worker, whole batches at a time where the data set can.

    A data set read sample by sample may draw random numbers (augmentation). Each sample is then
    read under a seed of its own, f(seed, epoch, index), so what a run sees depends neither on the
    number of workers nor on ranks, nor on where it was interrupted.

    An InputError (a picture that cannot be read) is handed over instead of the batch: raised here,
    a DataLoader would bury it in the traceback of its worker.
    """

    def __init__(self, dataset: MapDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, request: Request) -> Batch | InputError:
        try:
            if isinstance(self.dataset, BatchDataset):
                return self.dataset.gather(request.indices)
            return self._one_by_one(request)
        except InputError as error:
            return error

    def _one_by_one(self, request: Request) -> Batch:
        samples = []
        indices = request.indices.tolist()
        with _borrowed_rng():
            for index in indices or [0]:
                sample_seed = derive_seed(self.seed, "sample", request.epoch, index)
                torch.default_generator.manual_seed(sample_seed)
                random.seed(sample_seed)
                np.random.seed(sample_seed % 2**32)
                samples.append(self.dataset[index])
        inputs, targets = _stack(samples)
        # A rank without samples in a short batch gets none of one, which has the right shape.
        return inputs[: len(indices)], targets[: len(indices)]


def _stack(samples: list[Any]) -> Batch:
    try:
        inputs, targets = default_collate(samples)
    except RuntimeError:
        for number, what in enumerate(("inputs", "targets")):
            shapes = {tuple(torch.as_tensor(sample[number]).shape) for sample in samples}
            if len(shapes) > 1:
                raise InputError(
                    f"{what} of one batch",
                    given=f"shapes {sorted(shapes)[:4]}",
                    expected="the same shape for every sample",
                    remedy="Crop, resize or pad in the data set.",
                ) from None
        raise
    return inputs, targets


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
            atexit.register(_end_workers)
        self.evaluators: dict[int, DataLoader[Any]] = {}  # kept, and their workers with them

    def stream(self, window: int) -> Iterator[Batch]:
        requests = _TrainRequests(self.plan, window)
        return prefetch(_delivered(self._loader(self.train, requests)), self.device)

    def evaluation(
        self, batch_size: int, rank: int, world_size: int
    ) -> Iterator[tuple[int, Batch]]:
        bounds = evaluation_batches(len(self.test), batch_size)
        mine = range(rank, len(bounds), world_size)
        if batch_size not in self.evaluators:
            requests = [Request(torch.arange(*bounds[index]), 0) for index in mine]
            self.evaluators[batch_size] = self._loader(self.test, requests)
        batches = _delivered(self.evaluators[batch_size])
        return zip(mine, prefetch(batches, self.device), strict=True)

    def _loader(self, dataset: MapDataset, requests: Any) -> DataLoader[Any]:
        return DataLoader(
            Fetcher(dataset, self.plan.seed),  # type: ignore[arg-type]
            batch_sampler=requests,
            collate_fn=_as_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=self.prefetch_factor if self.workers else None,
            pin_memory=self.pinned,
            worker_init_fn=_start_worker,
            # A generator of its own: iterating must not draw from the stream dropout uses.
            generator=torch.Generator().manual_seed(derive_seed(self.plan.seed, "workers")),
        )


def build_loader(
    config: DataConfig, train: MapDataset, test: MapDataset, *, plan: Plan, device: torch.device
) -> Loader:
    """Choose where the data lives (`data.placement`) and how it reaches the device.

    Raises:
        InputError: If data that is read sample by sample is to live on the device, or workers could
            not answer.
    """
    arrays = isinstance(train, ArrayDataset) and isinstance(test, ArrayDataset)
    if config.placement == "device" and not arrays:
        raise InputError(
            "data.placement",
            given="device",
            expected="auto or host for a data set that is read sample by sample",
            remedy="Only data.datasets.ArrayDataset can live on the device.",
        )
    if arrays and config.workers == 0 and config.placement != "host":
        assert isinstance(train, ArrayDataset)
        assert isinstance(test, ArrayDataset)
        needed = train.num_bytes + test.num_bytes
        if config.placement == "device" or _fits(needed, device):
            return ResidentLoader(train, test, plan=plan, device=device)
    return HostLoader(
        train,
        test,
        plan=plan,
        device=device,
        workers=config.workers,
        prefetch_factor=config.prefetch_factor,
    )


class _TrainRequests:
    """Batch sampler over the whole rest of a run: workers never idle between two epochs."""

    def __init__(self, plan: Plan, window: int) -> None:
        self.plan = plan
        self.window = window

    def __iter__(self) -> Iterator[Request]:
        index = self.window
        while True:
            window = self.plan.window(index)
            for indices in self.plan.indices(window):
                yield Request(indices, window.epoch)
            index += 1


def _fits(num_bytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= RESIDENT_FRACTION * free


def _delivered(batches: Iterable[Batch | InputError]) -> Iterator[Batch]:
    """What workers read; what they refused is refused here."""
    for batch in batches:
        if isinstance(batch, InputError):
            # A new one: raised itself, it would hold this frame, and the frame it, and the workers
            # would be left to the garbage collector, which cannot end them in time.
            raise InputError(str(batch))
        yield batch


def _as_is(batch: Any) -> Any:
    return batch


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


def _start_worker(worker: int) -> None:
    """A stop request is for the trainer, which ends its workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """On the way out: multiprocessing would wait for workers that ignore its SIGTERM."""
    # torch's handler raises for every worker that is killed, wherever the process just is.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@contextmanager
def _borrowed_rng() -> Iterator[None]:
    """Seed the global generators freely inside, and find them as they were outside."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
