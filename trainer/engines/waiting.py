"""How long a rank waits for the others, in the row of steps that is looked at."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from trainer.backward.autograd import AutogradPasses
from trainer.engines.engine import Engine


class Span(AbstractContextManager["Span"]):
    """Time between two moments of a device: by events on a GPU, else by the clock of the host."""

    def __init__(self, device: torch.device) -> None:
        self.events: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        self.began = self.ended = 0.0

    def __enter__(self) -> Span:
        if self.events:
            self.events[0].record()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = time.perf_counter()
        if self.events:
            self.events[1].record()

    def seconds(self) -> float:
        """Waits for the device."""
        if not self.events:
            return self.ended - self.began
        self.events[1].synchronize()
        return float(self.events[0].elapsed_time(self.events[1])) / 1e3


class Waiting(AbstractContextManager["Waiting"]):
    """Times what this rank waits for the others, transfers included, in the steps taken inside.

    That is the reduction after the backward passes. Where an engine reduces within the last of them
    it is what follows the last gradient: autograd calls back what is asked of it first, and DDP
    asks for its own turn, in which it waits, later.
    """

    def __init__(self, engine: Engine, device: torch.device) -> None:
        assert engine.waits
        self.engine = engine
        self.device = device
        self.spans: list[Span] = []
        self.sums = 0.0
        """Seconds in sums with a neighbour: those of a backward pass come before its end."""
        self.before: list[tuple[object, dict[str, object]]] = []
        """Of engine and passes, their own attributes."""
        self.open: Span | None = None
        """Since the last gradient of the latest backward pass."""

    def __enter__(self) -> Waiting:
        reduce, passes = self.engine.reduce, self.engine.passes

        def timed_reduce() -> None:
            self.spans.append(span := Span(self.device))
            with span:
                reduce()

        def reduce_after_waiting() -> None:
            if self.open is not None:
                self.open.__exit__()
                self.spans.append(self.open)
            reduce()

        self.before = [(part, dict(vars(part))) for part in (self.engine, passes)]
        within = self.engine.waits == "within the backward pass"
        self.sums -= self._in_sums()
        vars(self.engine)["reduce"] = reduce_after_waiting if within else timed_reduce
        if within:
            assert isinstance(passes, AutogradPasses)
            backward = passes.backward

            def watched_backward(loss: Tensor) -> None:
                loss.register_hook(self._ask_first)  # type: ignore[no-untyped-call]
                backward(loss)

            vars(passes)["backward"] = watched_backward
        return self

    def __exit__(self, *_: object) -> None:
        self.sums += self._in_sums()
        for (part, before), name in zip(self.before, ("reduce", "backward"), strict=True):
            vars(part).pop(name, None)
            if name in before:
                vars(part)[name] = before[name]

    def _ask_first(self, _: Tensor) -> None:
        engine = torch.autograd.Variable._execution_engine
        engine.queue_callback(self._begin)

    def _begin(self) -> None:
        self.open = Span(self.device).__enter__()

    def _in_sums(self) -> float:
        neighbour = self.engine.neighbour
        within = self.engine.waits == "within the backward pass"
        return neighbour.waited_seconds if within and neighbour is not None else 0.0

    def seconds(self) -> float:
        """Of all the steps. Waits for the device."""
        return sum(span.seconds() for span in self.spans) + self.sums
