"""What a sink of records is: only rank 0 has sinks, and every sink gets every record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainer.objective.selection import Selection

Record = dict[str, float]
"""`step`, `epoch`, `time`, and values such as `train/loss` or `eval/accuracy`."""


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

    def finish(self, status: str) -> None:
        for sink in self.sinks:
            sink.finish(status)
