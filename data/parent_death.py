"""Processes that do not outlive whoever started them (Linux; elsewhere nothing)."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def signal_at_parent_death(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies.

    The parent is the thread that started it: it must not end before the process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def die_with(owner: int) -> None:
    """Have this process killed when its owner dies; end it now if that has happened already.

    The owner is its parent, unless Python starts processes through a server (forkserver, the
    default from Python 3.14 on), which lives as long as they do: then a thread watches the owner.

    Args:
        owner: The owner's process id, asked for before this process was started.
    """
    if sys.platform != "linux":
        return
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        threading.Thread(target=_end_after, args=(owner,), daemon=True).start()
        return
    signal_at_parent_death(signal.SIGKILL)
    if os.getppid() != owner:
        os._exit(1)


def _end_after(owner: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # dead and forgotten
        select.select([os.pidfd_open(owner)], [], [])
    os._exit(1)
