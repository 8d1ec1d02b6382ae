"""Are there cores for all threads, and is somebody else using them."""

from __future__ import annotations

import os
import time

import torch

from launch.diagnosis.findings import Check, Finding
from trainer.ranks.cores import OtherProcesses, available_cores

LOOK_SECONDS = 0.5
BUSY = 0.3
"""Cores in use by others that are not worth a word."""


def check_cores(ranks: int) -> Finding:
    """CPU threads of all ranks of this machine against the cores they may use."""
    cores = available_cores()
    threads = torch.get_num_threads()
    seen = f"{threads} CPU threads a rank, ranks: {ranks}, cores: {cores:g}"
    if threads * ranks > max(cores * 1.5, 1):
        return Check("machine", "cores").warning(
            seen,
            "Threads that wait for a core make every step slower, often several times.",
            f"--parallel.threads {max(int(cores) // ranks, 1)} (or OMP_NUM_THREADS)",
        )
    if threads == 1 and cores >= 4 * ranks:
        return Check("machine", "cores").note(
            seen,
            "torchrun sets OMP_NUM_THREADS=1; on a CPU most cores then idle.",
            f"--parallel.threads {int(cores) // ranks}",
        )
    return Check("machine", "cores").ok(seen)


def check_load(ranks: int, busy: float | None = None) -> Finding:
    """Whether other processes leave enough cores.

    Args:
        ranks: Ranks on this machine, which wait while it is looked at.
        busy: Cores that others use; measured if None.
    """
    if busy is None:
        others = OtherProcesses()
        time.sleep(LOOK_SECONDS)
        busy = others.look()
    if busy is None:
        return Check("machine", "load").note("the kernel does not say how busy the cores are")
    cores, threads = available_cores(), torch.get_num_threads() * ranks
    seen = (
        f"others keep {busy:.1f} of {cores:g} cores busy (load {os.getloadavg()[0]:.1f}); "
        f"a run here has {threads} threads"
    )
    if busy < BUSY or busy + threads <= cores + BUSY:
        return Check("machine", "load").ok(seen)
    left = max(int(cores - busy + BUSY) // ranks, 1)
    return Check("machine", "load").warning(
        seen,
        "The threads of a step wait for the one that has no core: all of them lose the time.",
        f"end the other processes, or --parallel.threads {left}, which changes the last bits",
    )
