"""How fast ranks talk: the latency and the bandwidth of an all-reduce, measured between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from trainer.ranks.collectives import max_
from trainer.ranks.runtime import Runtime

REPEATS = 5
WARMUP = 3
TOTAL_BYTES = 1 << 28
MIN_REPEATS, MAX_REPEATS = 5, 200
LATENCIES = 4
"""A message that takes so many times the latency of one spends a fifth of its time waiting."""


@dataclass(frozen=True, slots=True)
class Link:
    """Of an all-reduce over all ranks, as the slowest of them sees it."""

    latency: float
    """Seconds of one of a single number."""
    bandwidth: float
    """Bytes a second of a large one, besides the latency."""

    @property
    def message_bytes(self) -> int:
        """Of a message that is worth its latency; smaller ones had better travel together."""
        return int(LATENCIES * self.latency * self.bandwidth)


def measure_link(runtime: Runtime, num_bytes: int) -> Link:
    """Time an all-reduce of one number and one of so many bytes; every rank calls it."""
    sizes = (1, max(num_bytes // 4, 2))
    times = []
    for size in sizes:
        message = torch.zeros(size, device=runtime.device)
        (seconds,) = slowest(runtime, lambda message=message: dist.all_reduce(message))  # type: ignore[misc]
        times.append(seconds)
    latency, large = times
    return Link(latency, 4 * sizes[1] / max(large - latency, 1e-9))


def slowest(runtime: Runtime, *calls: Callable[[], object]) -> list[float]:
    """Seconds of each call, the quickest of some rounds, on the rank that takes longest.

    The calls take turns, so that a busy moment meets all of them. Every rank calls it.
    """
    best = [float("inf")] * len(calls)
    for round_ in range(REPEATS + 1):
        for index, call in enumerate(calls):
            wait_for(runtime.device)
            began = time.perf_counter()
            call()
            wait_for(runtime.device)
            if round_:  # libraries and connections wake up in the first one
                best[index] = min(best[index], time.perf_counter() - began)
    found: list[float] = max_(
        runtime, torch.tensor(best, dtype=torch.float64, device=runtime.device)
    ).tolist()
    return found


def all_reduce_seconds(device: torch.device, num_bytes: int) -> float:
    """Median seconds of an all-reduce of float32 numbers; every rank calls it equally often."""
    message = torch.zeros(num_bytes // 4, device=device)
    repeats = min(max(TOTAL_BYTES // num_bytes // 8, MIN_REPEATS), MAX_REPEATS)
    seconds = []
    for _ in range(WARMUP + repeats):
        wait_for(device)
        begun = time.perf_counter()
        dist.all_reduce(message)
        wait_for(device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[WARMUP:])


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was asked for; nothing waits on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
