"""What torch.compile does in this process while a run goes on: how long, how often, how well."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any


class CompileWatch:
    """Counts from its making on, as long as it lives."""

    def __init__(self) -> None:
        from torch._dynamo.callback import callback_handler  # slow to import

        self.seconds = 0.0
        """In which this process waited for the compiler, or for what it had kept."""
        self.recompilations = 0
        """Graphs made of code that had one before: for another size, say."""
        self.on_start: Callable[[], None] = lambda: None
        """Called before something is compiled."""
        self._told = (0.0, 0, 0)
        self._began = 0.0
        self._breaks_before = _graph_breaks()
        start, end = _through(self, "_start"), _through(self, "_end")
        callback_handler.register_start_callback(start)
        callback_handler.register_end_callback(end)
        weakref.finalize(self, _remove, callback_handler.start_callbacks, start)
        weakref.finalize(self, _remove, callback_handler.end_callbacks, end)

    @property
    def graph_breaks(self) -> int:
        """Places at which a graph ended and Python went on."""
        return _graph_breaks() - self._breaks_before

    def _start(self, event: Any) -> None:
        self._began = time.perf_counter()
        frame = event.callback_trigger.name == "DYNAMO"
        if frame and event.compile_id.rpartition("/")[2] not in ("", "0"):
            self.recompilations += 1
        self.on_start()

    def _end(self, event: Any) -> None:
        self.seconds += time.perf_counter() - self._began

    def values(self) -> dict[str, float]:
        """All of it, for a record or a summary."""
        return {
            "compile/seconds": round(self.seconds, 3),
            "compile/graph_breaks": self.graph_breaks,
            "compile/recompilations": self.recompilations,
        }

    def news(self) -> dict[str, float]:
        """The same if there is more of it than the last time, else nothing."""
        now = (self.seconds, self.graph_breaks, self.recompilations)
        if now == self._told:
            return {}
        self._told = now
        return self.values()

    def line(self) -> str:
        """All of it, for the log."""
        breaks = f"{self.graph_breaks} graph breaks"
        if self.graph_breaks:
            breaks += " (--compile.fullgraph true names the line of the first)"
        return f"compiled for {self.seconds:.1f} s: {breaks}, {self.recompilations} recompilations"


def _through(watch: CompileWatch, name: str) -> Callable[[Any], None]:
    """A method of an object that does not keep it alive."""
    seen = weakref.ref(watch)

    def call(event: Any) -> None:
        alive = seen()
        if alive is not None:
            getattr(alive, name)(event)

    return call


def _remove(callbacks: list[Callable[[Any], None]], callback: Callable[[Any], None]) -> None:
    if callback in callbacks:
        callbacks.remove(callback)


def _graph_breaks() -> int:
    from torch._dynamo.utils import counters

    return sum(counters["graph_break"].values())
