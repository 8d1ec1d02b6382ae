"""A run as a reader sees it: one record, whoever wrote it."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.comparing.annotations import Annotation
from launch.comparing.history import AXES

if TYPE_CHECKING:
    from trainer.records.sinks import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What there is to know of a run, finished or not."""

    name: str
    source: str
    """Where it was read from: a path, or entity/project/run_id."""
    config: dict[str, Any]
    """The resolved config under dotted keys, mappings taken apart."""
    records: list[Record]
    """One per step, in their order; never empty."""
    status: str
    """running, completed, preempted, failed, or W&B's own word."""
    execution: dict[str, str] = field(default_factory=dict)
    """How it was executed, under `runs as: NAME`; empty if it does not say."""
    git_commit: str | None = None
    world_size: int | None = None
    hardware: str | None = None
    group: str | None = None
    selected_by: str | None = None
    """The metric, without its group, that told which weights were the best; None: unknown."""
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    """What is known of its metrics, by their names without a group."""
    confusion: list[list[int]] = field(default_factory=list)
    """Counts, one row per true class; empty if the run has not been evaluated that way."""
    classes: list[str] = field(default_factory=list)
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    """Of its evaluation, the most confident first: index, true, predicted, confidence."""
    pictures: list[Path] = field(default_factory=list)
    """PNG files in its directory."""
    annotation: Annotation = field(default_factory=Annotation)
    notes: list[str] = field(default_factory=list)
    """What a reader should know about how it was read."""
    metrics: list[str] = field(init=False)
    """Names of everything measured, in the order of their first appearance."""
    _points: dict[str, list[tuple[float, float]]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        names = dict.fromkeys(key for record in self.records for key in record)
        object.__setattr__(self, "metrics", [name for name in names if name not in AXES])

    @property
    def seconds(self) -> float | None:
        """Training time over all restarts."""
        return next(
            (r["elapsed_seconds"] for r in self.records[::-1] if "elapsed_seconds" in r), None
        )

    def points(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of every record that has the metric."""
        if metric not in self._points:  # a comparison asks many times
            self._points[metric] = [(r["step"], r[metric]) for r in self.records if metric in r]
        return self._points[metric]

    def final(self, metric: str) -> float | None:
        """The latest value."""
        points = self.points(metric)
        return points[-1][1] if points else None

    def best(self, metric: str, *, lower: bool) -> tuple[float, float] | None:
        """(value, step) of the best finite value, the earlier one of equals."""
        points = [(value, step) for step, value in self.points(metric) if math.isfinite(value)]
        if not points:
            return None
        return min(points, key=lambda point: point[0] if lower else -point[0])

    def median(self, metric: str) -> float | None:
        """The median over all records."""
        points = self.points(metric)
        return statistics.median(value for _, value in points) if points else None


def flatten_mapping(content: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping stays a value."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and (value or not prefix):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            yield prefix, value

    return dict(walk("", content))


def selection(config: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """selected_by and higher_is_better, as summary.json says or else the config."""
    best, mode = config.get("evaluate.best"), config.get("evaluate.best_mode")
    directions = {str(best): mode == "max"} if best and mode in ("max", "min") else {}
    said = summary.get("higher_is_better")
    items = said.items() if isinstance(said, dict) else ()
    directions |= {name: higher for name, higher in items if isinstance(higher, bool)}
    selected = summary.get("selected_by") or best
    return {
        "selected_by": str(selected) if selected else None,
        "higher_is_better": directions,
    }


def short_commit(commit: object, dirty: object = False) -> str | None:
    """The first eight digits, marked if the files differed from the commit."""
    return f"{str(commit)[:8]}{' (changed)' if dirty else ''}" if commit else None


def count_names(names: list[str]) -> str:
    """`8 x NVIDIA H100`, several kinds joined by commas."""
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).items())


def repeated_note(repeated: int) -> list[str]:
    return [f"{repeated} records of steps taken again after a restart are left out"] * (
        repeated > 0
    )
