"""Do the ranks reach each other, and agree. Every rank calls these."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping

import torch

from configs.identity import digest
from configs.schema import RunConfig
from launch.diagnosis.check_pace import check_all_reduce, check_bandwidth, check_stragglers
from launch.diagnosis.findings import Check, Finding, name_some
from trainer.checkpoints.environment import describe_machine
from trainer.ranks.collectives import gather_objects
from trainer.ranks.runtime import Runtime

CONNECT_SECONDS = 10.0
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_cluster(config: RunConfig, runtime: Runtime) -> list[Finding]:
    """Look at the process group; the same findings on every rank."""
    return [
        check_placement(runtime),
        *check_network(runtime, os.environ),
        check_agreement(runtime, "same_software", environment_facts(config)),
        check_all_reduce(runtime),
        check_bandwidth(runtime),
        check_stragglers(runtime),
    ]


def check_placement(runtime: Runtime) -> Finding:
    """List which rank runs where; two ranks on one GPU are a mistake."""
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
    gpus = gather_objects(runtime, (row["host"], str(getattr(gpu, "uuid", device))))
    shared = [gpu_id for gpu_id, ranks in Counter(gpus).items() if ranks > 1]
    hosts = len({row["host"] for row in rows})
    seen = (
        f"{runtime.world_size} ranks on {hosts} {'machine' if hosts == 1 else 'machines'} "
        f"({runtime.launcher}, {runtime.backend})"
    )
    if gpu is not None and shared:
        return Check("cluster", "placement").problem(
            f"{seen}; several ranks use one GPU: {name_some(shared)}",
            "NCCL refuses such a group, or its ranks wait for each other's kernels.",
            "start one rank per GPU (torchrun --nproc_per_node=gpu)",
            table=rows,
        )
    return Check("cluster", "placement").ok(seen, table=rows)


def check_network(runtime: Runtime, env: Mapping[str, str]) -> list[Finding]:
    """The rendezvous address from every rank, and the interfaces named in the environment."""
    answers = gather_objects(runtime, _reach(env))
    failed = {rank: answer for rank, answer in enumerate(answers) if isinstance(answer, str)}
    address = f"{env.get('MASTER_ADDR')}:{env.get('MASTER_PORT')}"
    if "MASTER_ADDR" not in env:
        reached = Check("cluster", "rendezvous").ok("the ranks met without MASTER_ADDR")
    elif failed:
        reached = Check("cluster", "rendezvous").problem(
            f"{address} cannot be reached by rank {name_some([*failed])} ({failed[min(failed)]})",
            "Ranks that are restarted meet there again.",
            "let torchrun's --rdzv-endpoint name an address that every machine resolves and "
            "reaches, and open its port in the firewall",
        )
    else:
        slowest = max(float(answer) for answer in answers)
        reached = Check("cluster", "rendezvous").ok(
            f"{address} answers within {slowest * 1e3:.1f} ms"
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
        Check("cluster", "interface").problem(
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
        return Check("cluster", check).ok(f"{', '.join(facts)} are the same on all ranks")
    return Check("cluster", check).problem(
        "; ".join(differing),
        "Ranks that start from different things compute different gradients, and drift or hang.",
        "install the same environment and checkout everywhere, and derive everything random in a "
        "model or data set from the seed",
    )
