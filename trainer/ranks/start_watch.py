"""The start of a run, before its first step: it hears a request to stop, and the death of a rank.

Both are watched by threads: a signal handler of Python waits while a library waits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.ranks.launcher import guess
from trainer.ranks.stop_signals import SIGNALS

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

PATIENCE_SECONDS = 10.0
"""A start that was asked to stop may come to its first step in this time, and is stopped there."""
BEAT_SECONDS = 0.5
SILENT_BEATS = 16
"""A rank that has been silent for so many beats of another one is dead."""
DONE = "done"


@contextmanager
def watched_start(status: int) -> Iterator[Callable[[], None]]:
    """Inside, a start that a signal asked to stop ends the process if it takes long from there on.

    Nothing is lost: no step has been taken yet. Call it in the main thread.

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
                _leave("stopped on request before the first step: nothing was lost", status)

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


@contextmanager
def watched_ranks(store: TCPStore, session: str, rank: int, world_size: int) -> Iterator[None]:
    """Inside, a rank that dies takes the others with it: connecting, they would wait for it.

    Every rank beats in the store and listens to the next one, from its first beat on; whoever
    misses one tells all.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    over, connected = threading.Event(), threading.Event()
    # A connection of its own: one that waits for a key serves nobody else meanwhile.
    own = TCPStore(store.host, store.port, is_master=False)
    space = PrefixStore(f"{session}/start", own)
    _beat(space, rank)

    def watch() -> None:
        try:
            gone = _listen(space, rank, (rank + 1) % world_size, over)
            if connected.is_set():
                space.set(f"beat/{rank}", DONE)
        except Exception:  # the store has died with its host
            gone = None if over.is_set() else "the one that holds the store"
        if gone is not None:
            _leave(f"another rank is gone or silent ({gone}, while the ranks connected)", 1)

    thread = threading.Thread(target=watch, name="ranks", daemon=True)
    thread.start()
    try:
        yield
        connected.set()
    finally:
        over.set()
        thread.join()


def _listen(store: Store, rank: int, peer: int, over: threading.Event) -> str | None:
    """Beat until that is over; returns who is gone before."""
    last, silent = b"", 0
    while not over.wait(BEAT_SECONDS):
        _beat(store, rank)
        heard = store.get(f"beat/{peer}") if store.check([f"beat/{peer}"]) else b""
        silent = 0 if heard != last or heard in (b"", DONE.encode()) else silent + 1
        last = heard
        if silent > SILENT_BEATS:
            store.set("gone", f"rank {peer}")
        if store.check(["gone"]):
            return store.get("gone").decode()
    return None


def _beat(store: Store, rank: int) -> None:
    store.set(f"beat/{rank}", uuid.uuid4().hex)


def _leave(line: str, status: int) -> None:
    me = guess(os.environ)
    print(f"rank {me.rank}: {line}" if me.world_size > 1 else line, file=sys.stderr, flush=True)
    os._exit(status)
