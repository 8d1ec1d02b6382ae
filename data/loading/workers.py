"""What a DataLoader's workers are asked for, and how they answer."""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError
from data.collate import stack
from data.loading.order import Plan, derive_seed
from data.parent_death import die_with
from data.samples import Batch, BatchDataset, Collate, MapDataset
from data.structures import split


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

    def __init__(self, dataset: MapDataset, seed: int, collate: Collate) -> None:
        self.dataset = dataset
        self.seed = seed
        self.collate = collate
        self.gathers = isinstance(dataset, BatchDataset) and collate is stack

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, request: Request) -> Any:
        """The samples as a pair of their number and their content, or an InputError."""
        size = len(request.indices)
        try:
            if self.gathers:
                return size, self.dataset.gather(request.indices)  # type: ignore[attr-defined]
            return size, self._one_by_one(request)
        except InputError as error:
            return error

    def _one_by_one(self, request: Request) -> Any:
        samples = []
        indices = request.indices.tolist()
        with borrowed_rng():
            for index in indices or [0]:
                sample_seed = derive_seed(self.seed, "sample", request.epoch, index)
                torch.default_generator.manual_seed(sample_seed)
                random.seed(sample_seed)
                np.random.seed(sample_seed % 2**32)
                samples.append(self.dataset[index])
            # A rank without samples in a short batch gets one, which stands for none.
            return self.collate(samples)


class TrainRequests:
    """Batch sampler over the whole rest of a run: workers never idle between two epochs."""

    def __init__(self, plan: Plan, global_batch: int) -> None:
        self.plan = plan
        self.global_batch = global_batch

    def __iter__(self) -> Iterator[Request]:
        index = self.global_batch
        while True:
            global_batch = self.plan.global_batch(index)
            for indices in self.plan.indices(global_batch):
                yield Request(indices, global_batch.epoch)
            index += 1


def delivered(answers: Iterable[tuple[int, Any] | InputError]) -> Iterator[Batch]:
    """Batches that workers read; what they refused is refused here."""
    for answer in answers:
        if isinstance(answer, InputError):
            # A new one: raised itself, it would hold this frame, and the frame it, and the workers
            # would be left to the garbage collector, which cannot end them in time.
            raise InputError(str(answer))
        size, content = answer
        inputs, targets = split(content)
        if not size and isinstance(inputs, Tensor) and isinstance(targets, Tensor):
            inputs, targets = inputs[:0], targets[:0]
        yield Batch(inputs, targets, size)


def as_is(batch: Any) -> Any:
    """Return a batch unchanged: it is collated already."""
    return batch


def start_worker(worker: int, *, parent: int) -> None:
    """Ignore stop signals in a worker: they are for the trainer, which ends its workers itself.

    A worker dies with its trainer from here on: torch's own watch begins later, and until then one
    whose trainer was killed would wait for it for ever.
    """
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kill the workers at exit: multiprocessing would wait, because they ignore its SIGTERM."""
    # torch's handler raises for every worker that is killed, wherever the process just is.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@contextmanager
def borrowed_rng() -> Iterator[None]:
    """Seed the global generators freely inside, and find them as they were outside."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
