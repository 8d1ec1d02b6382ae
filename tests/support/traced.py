"""A call in a process of its own that is killed as it enters a system call; Linux."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable

TRACE_ME, SET_OPTIONS, GO_ON = 0, 0x4200, 24
MARK_CALLS, KILL_WITH_TRACER = 0x1, 0x100000
"""https://man7.org/linux/man-pages/man2/ptrace.2.html"""


def ptrace(request: int, pid: int = 0, data: int = 0) -> None:
    """Raises OSError where it is forbidden, as in some containers."""
    found = ctypes.CDLL(None, use_errno=True).ptrace
    found.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    found.restype = ctypes.c_long
    if found(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def killed_at(call: Callable[[], object], number: int) -> bool:
    """Call in a forked process that is killed before its `number`-th system call is made.

    Returns:
        Whether it was killed, instead of coming to its end before.

    Raises:
        OSError: If processes may not be traced here.
        AssertionError: If the call fails.
    """
    child = os.fork()
    if child == 0:
        try:
            ptrace(TRACE_ME)
            os.kill(os.getpid(), signal.SIGSTOP)
            call()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSTOPPED(status):
        raise OSError("processes may not be traced here")
    ptrace(SET_OPTIONS, child, MARK_CALLS | KILL_WITH_TRACER)
    seen, passed_on = 0, 0
    while True:
        ptrace(GO_ON, child, passed_on)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        in_call = os.WSTOPSIG(status) == signal.SIGTRAP | 0x80
        passed_on = 0 if in_call else os.WSTOPSIG(status)
        seen += in_call
        if seen == 2 * number - 1:  # each is seen as it begins and as it ends
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
