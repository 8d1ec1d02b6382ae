"""Processes that do not outlive whoever started them (Linux; elsewhere nothing)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def signal_at_parent_death(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def die_with(parent: int) -> None:
    """Have this process killed when its parent dies; end it now if that has happened already.

    Args:
        parent: The parent's process id, asked for before this process was started.
    """
    signal_at_parent_death(signal.SIGKILL)
    if sys.platform == "linux" and os.getppid() != parent:
        os._exit(1)
