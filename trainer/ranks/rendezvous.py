"""Where the ranks meet: an address, or a store with nothing in it from an earlier start."""

from __future__ import annotations

import functools
import itertools
import json
import re
import socket
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from trainer.ranks.launcher import LaunchedRank

POLL_SECONDS = 0.01
AGENT_SECONDS = 30.0
"""How long a launcher's store that does not answer is asked: it was there before any rank was."""
REFUSALS = 5
"""After so many, a second apart, nobody listens there any more."""
MEETINGS = itertools.count()
"""Every rank of a program calls `fit` equally often: each time they meet in another part of the
store."""


def meet(ranks: LaunchedRank, env: Mapping[str, str], timeout: timedelta) -> tuple[TCPStore, str]:
    """The store through which the ranks find each other, and the name of a fresh part of it.

    torchrun keeps its store when it restarts ranks, with the addresses of the dead ones in it; a
    restarted gloo rank that reads one before it is overwritten cannot connect, and the restart
    count does not tell the starts apart when nodes come and go. So the ranks agree on a session:
    every rank says hello with an identity of its own, rank 0 announces a session made of the
    identities it sees until every rank has confirmed that its own is among them. Where no agent
    hosts a store rank 0 does, and it is fresh.

    Raises:
        TimeoutError: If not all ranks have said hello in time.
        ValueError: If nothing says where to meet.
        RuntimeError: If the launcher has died.
    """
    rank, world_size = ranks.rank, ranks.world_size
    if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        host, port = meeting_point(ranks, env)
        patience = min(timeout, timedelta(seconds=AGENT_SECONDS))
        _knock(host, port, patience.total_seconds())
        store = TCPStore(host, port, is_master=False, timeout=patience)
        store.set_timeout(timeout)
        space = PrefixStore(f"convoy/{world_size}", store)
        return store, _agree(space, rank, world_size, timeout)
    store = _own_store(*meeting_point(ranks, env), world_size, ranks.is_main, timeout)
    return store, f"convoy/{next(MEETINGS)}"


def _knock(host: str, port: int, seconds: float) -> None:
    """Fail if nobody listens where the launcher did: a client of its store would ask for longer."""
    deadline, refusals = time.monotonic() + seconds, 0
    while True:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            return
        except OSError as error:
            refusals += isinstance(error, ConnectionRefusedError)
            if refusals == REFUSALS or time.monotonic() > deadline:
                gone = f"the launcher at {host}:{port} is gone or out of reach ({error})"
                raise RuntimeError(gone) from None
        time.sleep(1.0)


@functools.cache
def _own_store(host: str, port: int, world_size: int, hosts: bool, timeout: timedelta) -> TCPStore:
    """The store that rank 0 hosts, as long as its process lives: another rank may still ask it
    while rank 0 is on its way to the next meeting."""
    return TCPStore(
        host,
        port,
        world_size,
        is_master=hosts,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )


def _agree(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """The session that all ranks of this start have confirmed."""
    mine = uuid.uuid4().hex
    store.set(f"hello/{rank}", mine)
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        if rank == 0:
            present = [_read(store, f"hello/{peer}") for peer in range(world_size)]
            session = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(present)).hex
            if None not in present:
                store.set("session", json.dumps([session, present]))
        session, identities = json.loads(_read(store, "session") or '["", []]')
        if mine in identities:
            store.set(f"confirmed/{session}/{rank}", mine)
            confirmed = [f"confirmed/{session}/{peer}" for peer in range(world_size)]
            if store.check(confirmed):
                return str(session)
        time.sleep(POLL_SECONDS)
    raise TimeoutError("not all ranks were started")


def _read(store: Store, key: str) -> str | None:
    """A value that is there already; `get` alone would wait for it."""
    return store.get(key).decode() if store.check([key]) else None


def meeting_point(ranks: LaunchedRank, env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port where ranks meet.

    They are MASTER_ADDR and MASTER_PORT where the first is set. srun alone leaves that to us: they
    meet on the first node of the step, at a port that follows from the job and the step, of which
    several may run beside each other.

    Raises:
        ValueError: If nothing says so.
    """
    if ranks.launcher != "srun" or "MASTER_ADDR" in env:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
        if missing:
            raise ValueError(f"{' and '.join(missing)} not set")
        return env["MASTER_ADDR"], int(env["MASTER_PORT"])
    address = _first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", ""))
    if "SLURM_LAUNCH_NODE_IPADDR" in env and not _resolves(address):
        # Where srun was called: in a batch job that is the first node, too.
        address = env["SLURM_LAUNCH_NODE_IPADDR"]
    job, step = (int(env.get(f"SLURM_{name}_ID", "0")) for name in ("JOB", "STEP"))
    # Far apart, since jobs and steps have numbers in a row.
    return address, int(env.get("MASTER_PORT") or 20000 + (job + 997 * step) % 12000)


def _first_host(nodelist: str) -> str:
    """`node[03-05,9],other` -> `node03`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    return (match[1] + (match[2] or "")) if match else "127.0.0.1"


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
