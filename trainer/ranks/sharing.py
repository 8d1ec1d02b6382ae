"""A machine that is shared: it is noticed, said once, and threads wait for each other asleep.

A matrix product is divided among the threads of a rank, and each waits for the last one. GCC's
OpenMP lets them spin meanwhile, for up to 300,000 turns: alone on the cores they lose no time to
sleep, but when others want these too, they keep those cores from the very thread they wait for, and
a step takes twenty to a hundred times as long.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from trainer.ranks.cores import OtherProcesses, own_cpus
from trainer.ranks.runtime import Runtime

log = logging.getLogger("convoy")
LOOK_SECONDS = 0.25
SPARE = 0.3
"""Cores in use by others that leave a rank alone: what any system does now and then."""
CALM_LOOKS = 4
"""So many looks in a row find the machine free before threads spin again."""
SAID_AFTER = 20
"""Looks at a machine that is shared before a line says so."""


class Sleeping(Protocol):
    """How threads wait for each other: asleep, or not."""

    def begin(self) -> None: ...

    def end(self) -> None: ...


class SleepingThreads:
    """Makes the threads of GCC's OpenMP sleep almost at once when they wait, and spin again.

    The library spins a hundred turns only while it has more threads than there are cores; so a
    team of threads that does nothing is held as long as others shall sleep. No result changes: as
    many threads as before compute, on the same parts.

    Args:
        library: The one that torch has loaded.
        threads: Those of this rank.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.library = library
        self.size = max(library.omp_get_num_procs() - threads, 0) + 3
        self.over = threading.Event()
        self.holder: threading.Thread | None = None

    def begin(self) -> None:
        self.over.clear()
        self.holder = threading.Thread(target=self._hold, name="held threads", daemon=True)
        self.holder.start()

    def end(self) -> None:
        if self.holder is not None:
            self.over.set()
            self.holder.join()  # the library ends a team with the thread that called for it
            self.holder = None

    def _hold(self) -> None:
        nothing = ctypes.cast(self.library.omp_get_num_threads, ctypes.c_void_p)
        self.library.GOMP_parallel(nothing, None, ctypes.c_uint(self.size), ctypes.c_uint(0))
        self.over.wait()


def find_openmp() -> ctypes.CDLL | None:
    """GCC's OpenMP, if torch has loaded it."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
        paths = [line.split()[-1] for line in maps if "libgomp" in line]
        return ctypes.CDLL(paths[0]) if paths else None
    except OSError:
        return None


class Sharing:
    """What is done about others on this machine, look by look.

    Args:
        threads: CPU threads of this rank.
        ranks: Ranks of this machine.
        cores: Those that this rank may run on.
        sleeping: How the threads wait; None if there is no choice.
    """

    def __init__(self, *, threads: int, ranks: int, cores: int, sleeping: Sleeping | None) -> None:
        self.threads = threads
        self.ranks = ranks
        self.cores = cores
        self.sleeping = sleeping
        self.asleep = False
        self.calm = self.shared = 0

    def look(self, others: float) -> str:
        """Act on how many cores others keep busy; a line to say, once, or nothing.

        The other ranks of this machine are others, too: they have their own cores.
        """
        wanted = others + self.threads > self.cores + SPARE
        self.calm = 0 if wanted else self.calm + 1
        if wanted and not self.asleep:
            self._wait(asleep=True)
        elif self.asleep and self.calm >= CALM_LOOKS:
            self._wait(asleep=False)
        self.shared += wanted
        if not wanted or self.shared != SAID_AFTER:
            return ""
        threads = f"{self.threads} thread{'s'[: self.threads != 1]}"
        return (
            f"this machine is shared: other processes (data workers and compilers count) keep "
            f"{others:.1f} of {self.cores} cores busy, beside {threads} of this rank "
            f"({self.ranks} on this machine). A step waits for its slowest thread: end what else "
            "runs here, or take fewer threads (parallel.threads, which changes the last bits)"
        )

    def end(self) -> None:
        if self.asleep:
            self._wait(asleep=False)

    def _wait(self, *, asleep: bool) -> None:
        self.asleep = asleep
        if self.sleeping is not None:
            (self.sleeping.begin if asleep else self.sleeping.end)()


@contextmanager
def sharing_noticed(runtime: Runtime) -> Iterator[None]:
    """Inside, a thread looks four times a second whether others want the cores of this rank."""
    threads, others, over = torch.get_num_threads(), OtherProcesses(), threading.Event()
    library = find_openmp() if threads > 1 else None
    sharing = Sharing(
        threads=threads,
        ranks=runtime.local_world_size,
        cores=len(own_cpus()),
        sleeping=None if library is None else SleepingThreads(library, threads),
    )

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            busy = others.look()
            if busy is None:
                return
            if line := sharing.look(busy):
                log.warning(line)
        sharing.end()

    watcher = threading.Thread(target=watch, name="sharing", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
