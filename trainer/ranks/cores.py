"""The cores that this process may use, how its threads wait for each other, and for a core.

It imports no torch, so that a command can choose before anything heavy is loaded.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

SPINS = "20000"
"""Turns of a thread that waits for the others, about a millisecond; then it sleeps. GCC's OpenMP
has 300,000, in which the thread it waits for may be without a core because of it."""
WAIT_POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
CGROUPS = Path("/sys/fs/cgroup")
LOOK_SECONDS = 5.0
SHARED = 0.15
"""Part of the time that a thread was ready and had no core, above which a machine is shared."""


def bound_spinning(env: MutableMapping[str, str]) -> None:
    """Let threads of OpenMP sleep soon when they wait, unless the user has chosen.

    It changes no result. Call it before torch is loaded: libgomp reads it then, once.
    """
    if not any(name in env for name in WAIT_POLICIES):
        env["GOMP_SPINCOUNT"] = SPINS


def available_cores() -> float:
    """Cores this process may run on: its affinity, and the quota of its container."""
    cores, quota = float(len(os.sched_getaffinity(0))), cpu_quota()
    return cores if quota is None else min(cores, quota)


def cpu_quota(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that the cgroups of this process grant it, the least of them; None: no limit.

    Args:
        root: Where cgroups are mounted, of either version.
        own: Its lines are `number:controllers:path` of this process.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    granted = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if (root / controllers).is_dir() else root / "cpu"
        top = top if controllers else root
        inner = top / path.lstrip("/")
        folders = [inner, *inner.parents]
        granted += [
            quota
            for folder in folders[: folders.index(top) + 1]
            if (quota := _granted(folder)) is not None
        ]
    return min(granted, default=None)


def _granted(folder: Path) -> float | None:
    """By one cgroup: of version 2 in one file, of version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file, or `max`
        return None


def fair_threads(ranks: int, env: Mapping[str, str]) -> float:
    """CPU threads at most for each of so many ranks of this machine; infinite if it was said how
    many (OMP_NUM_THREADS).

    The quota is shared by all of them, and so are the cores unless this rank is bound to its own.
    Nothing else is looked at, and no clock: the last bits depend on the number of threads.
    """
    if "OMP_NUM_THREADS" in env:
        return math.inf
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    share = cores / ranks if cores == os.cpu_count() else cores
    return max(int(share if quota is None else min(share, quota / ranks)), 1)


class CoreWatch:
    """Whether threads of this process wait for a core: it looks now and then, and speaks once.

    The kernel counts for each thread how long it was ready to run and did not (`schedstat`). Where
    it does not, nothing is said.

    Args:
        threads: CPU threads of this rank.
        ranks: Ranks on this machine.
        tasks: The threads of this process.
        clock: Seconds.
    """

    def __init__(
        self,
        *,
        threads: int,
        ranks: int,
        tasks: Path = Path("/proc/self/task"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.threads = threads
        self.ranks = ranks
        self.tasks = tasks
        self.clock = clock
        self.since = clock()
        self.waited = self._waited()

    def look(self) -> str:
        """A line if the machine is shared, the first time that this is seen; else nothing."""
        now = self.clock()
        seconds = now - self.since
        if seconds < LOOK_SECONDS or not self.waited:
            return ""
        before, self.waited, self.since = self.waited, self._waited(), now
        part = (
            max((s - before.get(task, s) for task, s in self.waited.items()), default=0) / seconds
        )
        if part < SHARED:
            return ""
        self.waited = {}  # that is enough
        return (
            f"this machine is shared: for {part:.0%} of the last {seconds:.0f} s a thread of this "
            f"run was ready and had no core ({available_cores():g} cores, {self.ranks} ranks with "
            f"{self.threads} threads each, load {os.getloadavg()[0]:.1f}), and the others waited "
            "for it. End what else runs here, or take fewer threads (parallel.threads, which "
            "changes the last bits) or data.workers; `launch/doctor.py` says how busy it is"
        )

    def _waited(self) -> dict[str, float]:
        """Seconds without a core of each thread."""
        found = {}
        for folder in self.tasks.glob("[0-9]*"):
            try:
                found[folder.name] = int((folder / "schedstat").read_text().split()[1]) / 1e9
            except (OSError, ValueError, IndexError):  # it has ended, or nobody counts
                continue
        return found


def busy_cores(seconds: float, stat: Path = Path("/proc/stat")) -> float | None:
    """How many of this process's cores others keep busy while it sleeps for so long, the
    hypervisor included; None where the kernel does not say."""

    def used() -> tuple[float, float]:
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in stat.read_text().splitlines()]
        times = [[int(word) for word in line[1:9]] for line in lines if line[0] in mine]
        idle = sum(time[3] + time[4] for time in times)  # and waiting for a disk
        return sum(map(sum, times)) - idle, sum(map(sum, times))

    try:
        busy, total = used()
        time.sleep(seconds)
        busy_then, total_then = used()
    except (OSError, ValueError, IndexError):
        return None
    cores = len(os.sched_getaffinity(0))
    return cores * (busy_then - busy) / max(total_then - total, 1)
