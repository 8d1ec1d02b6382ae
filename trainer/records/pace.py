"""What each rank does, looked at for a record: time for a step, wait for data, memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.engines.engine import Engine
from trainer.engines.waiting import Span, Waiting
from trainer.ranks.runtime import Runtime
from trainer.records.sinks import Record

Take = Callable[[Sequence[GlobalBatch], Iterator[Batch]], None]
"""Takes a row of steps."""
GIB = 1 << 30
NUMBERS = 4
"""Of a rank, that travel with a record's sums."""


@dataclass(slots=True)
class RowOfSteps:
    """The latest row of steps that was looked at."""

    count: int
    whole: Span
    waiting: Waiting | None
    data_seconds: float = 0.0

    def numbers(self, device: torch.device) -> list[float]:
        """Of this rank. Waits for the device.

        Seconds a step (its own, where the wait for other ranks is known), seconds a step that it
        waited for data, most bytes of host memory and of device memory so far.
        """
        own = self.whole.seconds()
        if self.waiting is not None:
            own = max(own - self.waiting.seconds(), 0.0)
        held = peak_device_bytes(device) if device.type == "cuda" else 0
        return [own / self.count, self.data_seconds / self.count, peak_host_bytes(), held]


@dataclass(slots=True)
class Pace:
    """Looks at the last row of steps before each record; the other rows are taken as ever."""

    engine: Engine
    runtime: Runtime
    recorded: bool
    """Whether steps are replayed from recordings, whose parts have no times."""
    utilisation: Callable[[float], float | None] = lambda _: None
    """Of a rank's peak, at as many samples of its own a second; None: it is not known."""
    every_rank: bool = False
    """Whether records have the numbers of each rank too."""
    row: RowOfSteps | None = field(default=None, init=False)

    @property
    def knows_waiting(self) -> bool:
        """Whether the time of this rank can be told from its wait for the others."""
        return bool(self.engine.waits) and not self.recorded

    def timed(self, take: Take) -> Take:
        """The same, looked at."""

        def taken(global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
            device, several = self.runtime.device, self.runtime.world_size > 1
            waiting = Waiting(self.engine, device) if several and self.knows_waiting else None
            self.row = row = RowOfSteps(len(global_batches), Span(device), waiting)
            with waiting or nullcontext(), row.whole:
                take(global_batches, _timed(batches, row))

        return taken

    def unread(self) -> RowOfSteps | None:
        """The row that was looked at since the last time."""
        row, self.row = self.row, None
        return row

    def describe(self, ranks: Sequence[Sequence[float]], samples_per_second: float) -> Record:
        """What a record says of the numbers of all ranks, and of their throughput.

        The median of an even number of ranks is the lower one: two ranks are compared with each
        other, not with their mean.
        """
        own, data, host, device = zip(*ranks, strict=True)
        record: Record = {"system/step_seconds": statistics.median_low(own)}
        if len(own) > 1 and self.knows_waiting:
            slowest = max(range(len(own)), key=own.__getitem__)
            record |= {
                "system/fastest_step_seconds": min(own),
                "system/slowest_step_seconds": own[slowest],
                "system/slowest_rank": slowest,
            }
        record["system/data_seconds"] = max(data)
        record["system/peak_host_gib"] = max(host) / GIB
        if max(device):
            record["system/peak_device_gib"] = max(device) / GIB
        for rank, numbers in enumerate(ranks if self.every_rank else ()):
            seconds, waited, host_bytes, device_bytes = numbers
            name = f"system/rank_{rank}"
            record |= {f"{name}/step_seconds": seconds, f"{name}/data_seconds": waited}
            record[f"{name}/peak_host_gib"] = host_bytes / GIB
            if device_bytes:
                record[f"{name}/peak_device_gib"] = device_bytes / GIB
        used = self.utilisation(samples_per_second / len(own))
        return record if used is None else record | {"system/mfu": used}


def _timed(batches: Iterator[Batch], row: RowOfSteps) -> Iterator[Batch]:
    """The same batches; what they are waited for is added up."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        row.data_seconds += time.perf_counter() - began
        if batch is None:
            return
        yield batch


def peak_host_bytes() -> float:
    """The most memory that this process has held at once."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def peak_device_bytes(device: torch.device) -> int:
    """The most memory of a GPU that this process has held at once.

    As torch.cuda.max_memory_allocated, which sorts all statistics for it: a quarter of a
    millisecond on a slow host, of the 3 in which 50 recorded steps and their record are done.
    """
    statistics = torch.cuda.memory_stats_as_nested_dict(device)
    return int(statistics["allocated_bytes"]["all"]["peak"])
