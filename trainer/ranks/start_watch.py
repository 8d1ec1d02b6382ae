"""The start of a run, before its first step: it hears a request to stop whatever it waits for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trainer.ranks.failures import leave_at_once
from trainer.ranks.stop_signals import SIGNALS

PATIENCE_SECONDS = 10.0
"""A start that was asked to stop may come to its first step in this time, and is stopped there."""


@contextmanager
def watched_start(status: int) -> Iterator[Callable[[], None]]:
    """Inside, a start that a signal asked to stop ends the process if it takes long from there on.

    Nothing is lost: no step has been taken yet. A thread watches, because a signal handler of
    Python waits while a library waits. Call it in the main thread.

    Args:
        status: The exit status then.

    Yields:
        What to call when everything is built.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    started = threading.Event()

    def watch() -> None:
        while not started.is_set():
            heard = os.read(reader, 1)[0]
            if heard in SIGNALS and not started.wait(PATIENCE_SECONDS):
                leave_at_once("stopped on request before the first step: nothing was lost", status)

    thread = threading.Thread(target=watch, name="start", daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()

    def end() -> None:
        if not started.is_set():
            started.set()
            signal.set_wakeup_fd(before)
            os.write(writer, b"\0")
            thread.join()
            os.close(reader)
            os.close(writer)

    try:
        yield end
    finally:
        end()
