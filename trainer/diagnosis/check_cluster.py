"""Do the ranks reach each other, agree, add correctly, and keep pace. Every rank calls these."""

from __future__ import annotations

import os
import platform
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from configs.identity import digest
from configs.schema import RunConfig
from trainer.collectives import barrier, gather_objects, sum_
from trainer.diagnosis.findings import Finding, name_some
from trainer.run_directory import describe_machine
from trainer.runtime import Runtime

STRAGGLER_RATIO = 1.5
CLOCK_SPREAD_SECONDS = 1.0
CONNECT_SECONDS = 10.0
SIZES_BYTES = (2**10, 2**16, 2**20, 2**24)
REPEATS = 5
ROUNDS = 3
SLOW_NCCL_GB = 1.0
"""Bus bandwidth in GB/s below which NCCL does not use what connects the GPUs."""
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

Reduce = Callable[[Runtime, Tensor], Tensor]


def check_cluster(config: RunConfig, runtime: Runtime) -> list[Finding]:
    """Look at the process group; the same findings on every rank."""
    return [
        check_placement(runtime),
        *check_network(runtime, os.environ),
        check_clocks(runtime),
        check_agreement(runtime, "same_software", environment_facts(config)),
        check_all_reduce(runtime),
        check_bandwidth(runtime),
        check_stragglers(runtime),
    ]


def check_placement(runtime: Runtime) -> Finding:
    """Which rank runs where; two ranks on one GPU are a mistake."""
    device = runtime.device
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    row = {
        "rank": runtime.rank,
        "host": socket.gethostname(),
        "local rank": runtime.local_rank,
        "device": str(device) if gpu is None else f"{device} {gpu.name}",
        "threads": torch.get_num_threads(),
        "process": os.getpid(),
    }
    rows = gather_objects(runtime, row)
    places = gather_objects(runtime, (row["host"], str(getattr(gpu, "uuid", device))))
    shared = [place for place, ranks in Counter(places).items() if ranks > 1]
    hosts = len({row["host"] for row in rows})
    seen = (
        f"{runtime.world_size} ranks on {hosts} {'machine' if hosts == 1 else 'machines'} "
        f"({runtime.launcher}, {runtime.backend})"
    )
    if gpu is not None and shared:
        return Finding(
            "cluster",
            "placement",
            "problem",
            f"{seen}; several ranks use one GPU: {name_some(shared)}",
            "NCCL refuses such a group, or its ranks wait for each other's kernels.",
            "start one rank per GPU (torchrun --nproc_per_node=gpu)",
            table=rows,
        )
    return Finding("cluster", "placement", "ok", seen, table=rows)


def check_network(runtime: Runtime, env: Mapping[str, str]) -> list[Finding]:
    """The rendezvous address from every rank, and the interfaces named in the environment."""
    answers = gather_objects(runtime, _reach(env))
    failed = {rank: answer for rank, answer in enumerate(answers) if isinstance(answer, str)}
    address = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
    if "MASTER_ADDR" not in env:
        reached = Finding("cluster", "rendezvous", "ok", "the ranks met without MASTER_ADDR")
    elif failed:
        reached = Finding(
            "cluster",
            "rendezvous",
            "problem",
            f"{address} cannot be reached by rank {name_some([*failed])} ({failed[min(failed)]})",
            "Ranks that are restarted meet there again.",
            "let torchrun's --rdzv-endpoint name an address that every machine resolves and "
            "reaches, and open its port in the firewall",
        )
    else:
        slowest = max(float(answer) for answer in answers)
        reached = Finding(
            "cluster", "rendezvous", "ok", f"{address} answers within {slowest * 1e3:.1f} ms"
        )
    return [reached, *_check_interfaces(runtime, env)]


def _reach(env: Mapping[str, str]) -> float | str:
    """Seconds to connect to the rendezvous address, or what went wrong."""
    try:
        began = time.perf_counter()
        address = env.get("MASTER_ADDR", ""), int(env.get("MASTER_PORT", "0"))
        with socket.create_connection(address, timeout=CONNECT_SECONDS):
            return time.perf_counter() - began
    except (OSError, ValueError) as error:
        return str(error)


def _check_interfaces(runtime: Runtime, env: Mapping[str, str]) -> list[Finding]:
    known = [name for _, name in socket.if_nameindex()]
    missing = [
        f"{variable}={env[variable]}"
        for variable in INTERFACES
        if env.get(variable) and not _matches(env[variable], known)
    ]
    several_machines = runtime.local_world_size < runtime.world_size
    own = _own_address()
    trapped = several_machines and own.startswith("127.") and "GLOO_SOCKET_IFNAME" not in env
    complaints = gather_objects(
        runtime,
        [f"{wrong}: no such interface among {', '.join(known)}" for wrong in missing]
        + [f"the host name resolves to {own}"] * (trapped and runtime.backend == "gloo"),
    )
    wrong = {rank: found for rank, found in enumerate(complaints) if found}
    if not wrong:
        return []
    return [
        Finding(
            "cluster",
            "interface",
            "problem",
            f"rank {name_some([*wrong])}: {wrong[min(wrong)][0]}",
            "Ranks tell each other an address that other machines cannot reach.",
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that connects the "
            "machines (`ip addr` lists them)",
        )
    ]


def _matches(given: str, known: list[str]) -> bool:
    """NCCL takes prefixes, `=exact` names and `^excluded` ones, separated by commas."""
    if given.startswith("^"):
        return True
    names = given.removeprefix("=").split(",")
    return any(interface.startswith(name) for interface in known for name in names if name)


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "nothing"


def check_clocks(runtime: Runtime) -> Finding:
    """All ranks read the clock right after a barrier."""
    barrier(runtime)
    times = gather_objects(runtime, time.time())
    spread = max(times) - min(times)
    seen = f"the clocks of all ranks are within {spread * 1e3:.1f} ms"
    if spread < CLOCK_SPREAD_SECONDS:
        return Finding("cluster", "clocks", "ok", seen)
    ahead = times.index(max(times))
    return Finding(
        "cluster",
        "clocks",
        "warning",
        f"the clock of rank {ahead} is {spread:.1f} s ahead of the slowest",
        "Logs of several machines cannot be put in order, and shared folders confuse file times.",
        "synchronise the clocks (chrony, systemd-timesyncd)",
    )


def environment_facts(config: RunConfig) -> dict[str, str]:
    """What must be the same on every rank for them to compute the same."""
    machine = describe_machine()
    return {
        "python": platform.python_version(),
        **{name: str(version) for name, version in machine["packages"].items()},
        "commit": f"{machine['git_commit']}{' (changed)' * machine['git_dirty']}",
        "config": digest(config)[:12],
        "threads": str(torch.get_num_threads()),
    }


def check_agreement(runtime: Runtime, check: str, facts: dict[str, str]) -> Finding:
    """Every fact must be the same on all ranks; those that differ are named with their ranks."""
    all_facts = gather_objects(runtime, facts)
    differing = []
    for key in facts:
        values = [found.get(key) for found in all_facts]
        usual = max(Counter(values), key=lambda v: (values.count(v), v == values[0]))
        odd = [rank for rank, value in enumerate(values) if value != usual]
        if odd:
            theirs = all_facts[odd[0]].get(key)
            differing.append(f"{key}: rank {name_some(odd)} has {theirs}, the others {usual}")
    if not differing:
        return Finding("cluster", check, "ok", f"{', '.join(facts)} are the same on all ranks")
    return Finding(
        "cluster",
        check,
        "problem",
        "; ".join(differing),
        "Ranks that start from different things compute different gradients, and drift or hang.",
        "install the same environment and checkout everywhere, and derive everything random in a "
        "model or data set from the seed",
    )


def check_all_reduce(runtime: Runtime, reduce_: Reduce = sum_) -> Finding:
    """Sum known integers and known floats over all ranks; each rank compares every entry.

    Args:
        runtime: This rank among its peers.
        reduce_: The all-reduce to try.
    """
    rank, world = runtime.rank, runtime.world_size
    device = runtime.device
    places = torch.arange(100_003, device=device)
    wrong = []
    integers = reduce_(runtime, places * (rank + 1))
    if not torch.equal(integers, places * (world * (world + 1) // 2)):
        wrong.append("int64")
    # Eighths below 2**12: every partial sum is exact in float32, in any order.
    pattern = (places % 4096).float() / 8
    floats = reduce_(runtime, pattern * (-1.0 if rank % 2 else 1.0) + rank)
    expected = pattern * (world % 2) + world * (world - 1) / 2
    if not torch.equal(floats, expected):
        wrong.append("float32")
    failed = {r: w for r, w in enumerate(gather_objects(runtime, wrong)) if w}
    if not failed:
        return Finding(
            "cluster", "all_reduce", "ok", f"{2 * len(places):,} known sums are exact on all ranks"
        )
    return Finding(
        "cluster",
        "all_reduce",
        "problem",
        f"wrong sums on rank {name_some([*failed])} ({', '.join(failed[min(failed)])})",
        "Gradients are summed this way: the weights of these ranks will go astray.",
        "try another backend or NCCL version, NCCL_P2P_DISABLE=1, or leave that machine out",
    )


def check_bandwidth(runtime: Runtime) -> Finding:
    """Time all-reduces of several sizes; the median of the slowest rank counts."""
    rows: list[dict[str, Any]] = []
    for size in SIZES_BYTES:
        tensor = torch.zeros(size // 4, device=runtime.device)
        seconds = []
        for _ in range(REPEATS + 1):
            barrier(runtime)
            _wait_for(runtime.device)
            began = time.perf_counter()
            sum_(runtime, tensor)
            _wait_for(runtime.device)
            seconds.append(time.perf_counter() - began)
        slowest = max(gather_objects(runtime, statistics.median(seconds[1:])))
        # Bytes that cross each link, as NCCL's own tests count them.
        bus = size / slowest * 2 * (runtime.world_size - 1) / runtime.world_size
        rows.append({"KiB": size // 1024, "ms": slowest * 1e3, "bus GB/s": bus / 1e9})
    best = max(row["bus GB/s"] for row in rows)
    seen = f"all-reduce reaches {best:.2g} GB/s over {runtime.backend}"
    if runtime.backend != "nccl" or best >= SLOW_NCCL_GB:
        return Finding("cluster", "bandwidth", "ok", seen, table=rows)
    return Finding(
        "cluster",
        "bandwidth",
        "warning",
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
        return Finding("cluster", "stragglers", "ok", "all ranks keep pace", table=rows)
    named = name_some([f"{rank} ({ratio:.1f} x the median)" for rank, ratio in slow.items()])
    return Finding(
        "cluster",
        "stragglers",
        "warning",
        f"slow: rank {named}",
        "Every step waits for the slowest rank.",
        "look for other processes, a throttled or hot GPU, and fewer cores on its machine",
        table=rows,
    )


def matmul_seconds(device: torch.device, repeats: int = 15) -> float:
    """Median time of a fixed matrix product on this rank."""
    size = 4096 if device.type == "cuda" else 256
    matrix = torch.ones(size, size, device=device)
    seconds = []
    for _ in range(repeats):
        _wait_for(device)
        began = time.perf_counter()
        matrix @ matrix
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
