"""The cores that this process may use, and how many of them others keep busy."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def own_cpus() -> set[int]:
    """The CPUs that this process is bound to; all of them where there is no such thing."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def available_cores() -> float:
    """Cores this process may run on: its affinity, and the quota of its container."""
    cores, quota = float(len(own_cpus())), cpu_quota()
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
    cores, quota = len(own_cpus()), cpu_quota()
    share = cores / ranks if cores == os.cpu_count() else cores
    return max(int(share if quota is None else min(share, quota / ranks)), 1)


class OtherProcesses:
    """How many of this process's cores others keep busy, the hypervisor included.

    Its own data workers and compilers are others, too.

    Args:
        stat: What the kernel says of each CPU.
        own_seconds: CPU time of this process.
        clock: Seconds.
    """

    def __init__(
        self,
        stat: Path = Path("/proc/stat"),
        own_seconds: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stat = stat
        self.own_seconds = own_seconds
        self.clock = clock
        self.before = self._read()

    def look(self) -> float | None:
        """Cores in use by others since the last look; None where the kernel does not say."""
        before, self.before = self.before, self._read()
        if before is None or self.before is None:
            return None
        busy, total, own, seconds = (b - a for a, b in zip(before, self.before, strict=True))
        cores = len(own_cpus())
        return max(cores * busy / max(total, 1) - own / max(seconds, 1e-9), 0.0)

    def _read(self) -> tuple[float, ...] | None:
        mine = {f"cpu{number}" for number in own_cpus()}
        try:
            lines = [line.split() for line in self.stat.read_text().splitlines()]
            times = [[int(word) for word in line[1:9]] for line in lines if line[0] in mine]
            idle = sum(time[3] + time[4] for time in times)  # the latter waits for a disk
        except (OSError, ValueError, IndexError):
            return None
        total = sum(map(sum, times))
        return total - idle, total, self.own_seconds(), self.clock()
