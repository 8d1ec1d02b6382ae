"""What a sink of records is: only rank 0 has sinks, and every sink gets every record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.objective.selection import Selection

Record = dict[str, float]
"""`step`, `epoch`, `time`, and values such as `train/loss` or `eval/accuracy`."""
BINS = 64
"""Of a histogram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a sink may want to know of the run that it records."""

    directory: Path
    config: dict[str, Any]
    """The resolved config under dotted keys."""
    environment: dict[str, Any]
    """The content of environment.json."""
    total_steps: int
    total_epochs: float
    samples_per_epoch: int
    score_name: str
    """The score that is recorded as `train/SCORE_NAME` beside `train/loss`; empty: none."""
    selection: Selection
    """Which evaluation is better."""
    first_step: int
    """Step the run starts or continues from; records after it from an earlier try are void."""
    void: tuple[str, ...] = ()
    """Groups of metrics, such as eval, whose records at that step are void too: they come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something else than numbers that a hook shows: a text, a picture or a histogram."""

    step: int
    name: str
    text: str | None = None
    pixels: NDArray[np.uint8] | None = None
    """`(H, W, C)`."""
    counts: NDArray[np.int64] | None = None
    """How many values lie in each bin of a histogram."""
    edges: NDArray[np.float64] | None = None
    """Of its bins: one more than there are counts."""

    @classmethod
    def of_pixels(cls, step: int, name: str, pixels: Tensor) -> Note:
        """A picture `(H, W)` or `(C, H, W)` of uint8, or of floats from 0 to 1.

        Raises:
            ValueError: For another shape.
        """
        found = pixels.detach().cpu()
        if found.ndim == 2:
            found = found[None]
        if found.ndim != 3 or found.shape[0] not in (1, 3, 4):
            raise ValueError(f"a picture (H, W) or (C, H, W), not {tuple(pixels.shape)}")
        if found.is_floating_point():
            found = (found.float().clamp(0, 1) * 255).round()
        array = found.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return cls(step=step, name=name, pixels=array)

    @classmethod
    def of_values(cls, step: int, name: str, values: Tensor) -> Note:
        """A histogram of numbers of any shape; those that are not finite are left out."""
        found = values.detach().flatten().double().cpu()
        counts, edges = np.histogram(found[found.isfinite()].numpy(), BINS)
        return cls(step=step, name=name, counts=counts, edges=edges)


@runtime_checkable
class NoteTaker(Protocol):
    """A sink that takes notes too."""

    def note(self, note: Note) -> None: ...


class Sink(Protocol):
    """Somewhere that records go: a file, the screen, a service."""

    def start(self, facts: RunFacts) -> None:
        """Called once, before the first step."""
        ...

    def record(self, record: Record) -> None:
        """Called for every record, in the order of steps."""
        ...

    def finish(self, status: str) -> None:
        """Called once: completed, preempted or failed."""
        ...


class Sinks:
    """All sinks of this rank as one; none on ranks other than 0."""

    def __init__(self, sinks: list[Sink]) -> None:
        self.sinks = sinks

    def start(self, facts: RunFacts) -> None:
        for sink in self.sinks:
            sink.start(facts)

    def record(self, record: Record) -> None:
        for sink in self.sinks:
            sink.record(record)

    def note(self, note: Note) -> None:
        for sink in self.sinks:
            if isinstance(sink, NoteTaker):
                sink.note(note)

    def finish(self, status: str) -> None:
        for sink in self.sinks:
            sink.finish(status)
