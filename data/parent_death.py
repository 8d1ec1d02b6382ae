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


def signal_at_parent_death(number: signal.Signals, owner: int) -> None:
    """Have the kernel send this process a signal when its parent dies; end it now if that has
    happened already: the kernel tells nobody of a death that was before.

    The parent is the thread that started it: it must not end before the process.

    Args:
        number: The signal.
        owner: The parent's process id, asked for as early as can be: before this process was
            started, or at its first line.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
    if os.getppid() != owner:
        os._exit(128 + number)


def ask_at_parent_death(owner: int) -> None:
    """A `preexec_fn` of `subprocess`: the program that is started gets SIGTERM when its owner dies.

    Until the program runs, a handler of the owner's would take the signal, and nobody would hear
    of it.

    Args:
        owner: The owner's process id.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal_at_parent_death(signal.SIGTERM, owner)


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
    signal_at_parent_death(signal.SIGKILL, owner)


def _end_after(owner: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # dead and forgotten
        select.select([os.pidfd_open(owner)], [], [])
    os._exit(1)
