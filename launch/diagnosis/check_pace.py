"""Do the ranks add correctly, and keep pace. Every rank calls these."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from launch.diagnosis.findings import Check, Finding, name_some
from trainer.ranks.collectives import barrier, gather_objects, sum_
from trainer.ranks.link import all_reduce_seconds, wait_for
from trainer.ranks.runtime import Runtime

STRAGGLER_RATIO = 1.5
SIZES_BYTES = (2**10, 2**16, 2**20, 2**24)
ROUNDS = 3
SLOW_NCCL_GB = 1.0
"""Bus bandwidth in GB/s below which NCCL does not use what connects the GPUs."""
Reduce = Callable[[Runtime, Tensor], Tensor]


def check_all_reduce(runtime: Runtime, reduce_: Reduce = sum_) -> Finding:
    """Sum known integers and known floats over all ranks; each rank compares every entry.

    Args:
        runtime: This rank among its peers.
        reduce_: The all-reduce to try.
    """
    rank, world = runtime.rank, runtime.world_size
    device = runtime.device
    indices = torch.arange(100_003, device=device)
    wrong = []
    integers = reduce_(runtime, indices * (rank + 1))
    if not torch.equal(integers, indices * (world * (world + 1) // 2)):
        wrong.append("int64")
    # Eighths below 2**12: every partial sum is exact in float32, in any order.
    pattern = (indices % 4096).float() / 8
    floats = reduce_(runtime, pattern * (-1.0 if rank % 2 else 1.0) + rank)
    expected = pattern * (world % 2) + world * (world - 1) / 2
    if not torch.equal(floats, expected):
        wrong.append("float32")
    failed = {r: w for r, w in enumerate(gather_objects(runtime, wrong)) if w}
    if not failed:
        return Check("cluster", "all_reduce").ok(
            f"{2 * len(indices):,} known sums are exact on all ranks"
        )
    return Check("cluster", "all_reduce").problem(
        f"wrong sums on rank {name_some([*failed])} ({', '.join(failed[min(failed)])})",
        "Gradients are summed this way: the weights of these ranks will go astray.",
        "try another backend or NCCL version, NCCL_P2P_DISABLE=1, or leave that machine out",
    )


def check_bandwidth(runtime: Runtime) -> Finding:
    """Time all-reduces of several sizes; the median of the slowest rank counts."""
    rows: list[dict[str, Any]] = []
    for size in SIZES_BYTES:
        slowest = max(gather_objects(runtime, all_reduce_seconds(runtime.device, size)))
        # Bytes that cross each link, as NCCL's own tests count them.
        bus = size / slowest * 2 * (runtime.world_size - 1) / runtime.world_size
        rows.append({"KiB": size // 1024, "ms": slowest * 1e3, "bus GB/s": bus / 1e9})
    best = max(row["bus GB/s"] for row in rows)
    seen = f"all-reduce reaches {best:.2g} GB/s over {runtime.backend}"
    if runtime.backend != "nccl" or best >= SLOW_NCCL_GB:
        return Check("cluster", "bandwidth").ok(seen, table=rows)
    return Check("cluster", "bandwidth").warning(
        seen,
        "Gradients of every step cross this link: ranks will wait for it.",
        "NCCL_DEBUG=INFO tells which transport is used; check NCCL_SOCKET_IFNAME, and that the "
        "container sees the RDMA cards",
        table=rows,
    )


def check_stragglers(
    runtime: Runtime, work: Callable[[torch.device], float] | None = None
) -> Finding:
    """Every rank times the same work at the same time; one that is slow holds up all others.

    Args:
        runtime: This rank among its peers.
        work: Takes the device, returns seconds; matrix products by default.
    """
    rounds = []
    for _ in range(ROUNDS):
        barrier(runtime)
        rounds.append((work or matmul_seconds)(runtime.device))
    # The best round, so that a hiccup is not taken for a slow rank; of two ranks the faster counts.
    seconds = gather_objects(runtime, min(rounds))
    usual = statistics.median_low(seconds)
    slow = {r: s / usual for r, s in enumerate(seconds) if s > STRAGGLER_RATIO * usual}
    rows = [
        {"rank": rank, "ms": time_ * 1e3, "x median": time_ / usual}
        for rank, time_ in enumerate(seconds)
    ]
    if not slow:
        return Check("cluster", "stragglers").ok("all ranks keep pace", table=rows)
    named = name_some([f"{rank} ({ratio:.1f} x the median)" for rank, ratio in slow.items()])
    return Check("cluster", "stragglers").warning(
        f"slow: rank {named}",
        "Every step waits for the slowest rank.",
        "look for other processes, a throttled or hot GPU, and fewer cores on its machine",
        table=rows,
    )


def matmul_seconds(device: torch.device) -> float:
    """Median time of a fixed matrix product on this rank."""
    size = 4096 if device.type == "cuda" else 256
    matrix = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(15):
        wait_for(device)
        began = time.perf_counter()
        matrix @ matrix
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
