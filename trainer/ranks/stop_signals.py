"""Requests to stop: a signal sets a flag, and the ranks agree on it at a step boundary."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from data.parent_death import signal_at_parent_death

if TYPE_CHECKING:
    from trainer.ranks.runtime import Runtime

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: saved, and worth starting again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
AGREE_SECONDS = 0.5
"""About how often the ranks ask each other; measured in steps, so that all ask at the same one."""
SAME_REQUEST_SECONDS = 1.0
"""A launcher repeats the Ctrl-C that its ranks have already had: that is still one request."""


class StopRequest:
    """A flag that a signal sets; nothing else happens inside the signal handler.

    Args:
        raises: Whether a second Ctrl-C raises KeyboardInterrupt instead of ending the process: it
            may be a notebook's.
    """

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises
        self.signal: signal.Signals | None = None
        self._first = 0.0

    @property
    def pending(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler; a second request ends the process at once."""
        now = time.monotonic()
        if self.pending and now - self._first > SAME_REQUEST_SECONDS:
            if self.raises and number == signal.SIGINT:
                raise KeyboardInterrupt
            os._exit(128 + number)
        if not self.pending:
            self.signal, self._first = signal.Signals(number), now


@contextmanager
def stop_on_signals(*, raises: bool = False) -> Iterator[StopRequest]:
    """Handle the signals inside, and put the old handlers back afterwards.

    SIGHUP comes when a terminal or its connection is closed; nohup has it ignored, and it stays so.
    Python handles signals in its main thread only: in another one nothing is heard.

    Args:
        raises: See `StopRequest`.
    """
    request = StopRequest(raises=raises)
    if not in_main_thread():
        yield request
        return
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    heard = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, request.handle) for number in heard}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def hear_earlier_request(env: Mapping[str, str]) -> None:
    """Take up a request that came before this process could hear it, as if it came now.

    A job script leaves it in the file that CONVOY_STOP_FILE names: a signal to processes that do
    not run yet is lost. Whoever asks writes the file first and sends the signal then; call this
    when signals are handled, and one of the two is heard.
    """
    if os.path.exists(env.get("CONVOY_STOP_FILE", "")):
        signal.raise_signal(signal.SIGUSR1)


def in_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


def stop_with_parent(parent: int | None = None) -> None:
    """Have the kernel send this process SIGTERM when its launcher dies (Linux; elsewhere nothing).

    torchrun dies of SIGUSR1 or SIGKILL without a word to its ranks, which would train on unseen.

    Args:
        parent: The launcher's process id, asked for as early as can be: if it has died since, this
            process ends at once. None: the parent as it is now.
    """
    signal_at_parent_death(signal.SIGTERM, os.getppid() if parent is None else parent)


class StopPoll:
    """Whether any rank was told to stop: asked at every step, but exchanged between ranks rarely.

    Every rank must call it equally often, and all get True from the same call. How many calls lie
    between two exchanges follows from the slowest rank's pace, which is agreed on in the same
    exchange.
    """

    def __init__(self, request: StopRequest, runtime: Runtime) -> None:
        self.request = request
        self.runtime = runtime
        self.calls = 0
        self.interval = 1
        self.since = time.monotonic()

    def __call__(self) -> bool:
        if self.runtime.world_size == 1:
            return self.request.pending
        self.calls += 1
        if self.calls < self.interval:
            return False
        import torch  # here, so that signals are handled before the seconds this takes

        from trainer.ranks.collectives import max_

        pace = (time.monotonic() - self.since) / self.calls
        mine = torch.tensor([float(self.request.pending), pace], device=self.runtime.device)
        pending, slowest = max_(self.runtime, mine).tolist()
        # At most twice as long as before: one quick call says little about the next ones.
        wanted = int(AGREE_SECONDS / max(slowest, 1e-6))
        self.interval = max(1, min(wanted, 2 * self.interval, 1000))
        self.calls, self.since = 0, time.monotonic()
        return bool(pending)
