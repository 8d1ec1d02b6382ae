"""Ranks that connect listen to each other: one that died would be waited for."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.ranks.failures import leave_at_once

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

BEAT_SECONDS = 0.5
SILENT_BEATS = 16
"""A rank that has been silent for so many beats of another one is dead."""
DONE = "done"
GONE = "another rank is gone or silent ({}, while the ranks connected)"


@contextmanager
def answered_within(seconds: float, line: str, status: int = 1) -> Iterator[None]:
    """Inside, a store that does not answer ends the process: most of its calls would wait until
    TCP gives up, which takes a quarter of an hour.

    Args:
        seconds: How long all that is inside may take.
        line: What to say then.
        status: The exit status then.
    """
    timer = threading.Timer(seconds, leave_at_once, [line, status])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
            leave_at_once(GONE.format(gone), 1)

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
        with answered_within(BEAT_SECONDS * SILENT_BEATS, GONE.format("the store")):
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
