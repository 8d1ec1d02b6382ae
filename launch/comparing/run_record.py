"""A run as a reader sees it: one record, whoever wrote it; and how a run directory becomes one."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.read_files import parse_json, read_json, read_text, read_yaml
from launch.comparing.history import AXES, build_history, numbers
from trainer.records.jsonl import FILE_NAME
from trainer.records.sinks import Record

CONFIG, ENVIRONMENT, SUMMARY = "config.yaml", "environment.json", "summary.json"
EVALUATION = "evaluation.json"
MOST_RECORDED_BYTES = 1 << 29
"""Of metrics.jsonl, or of an evaluation with a large confusion matrix."""


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
    confusion: list[list[int]] = field(default_factory=list)
    """Counts, one row per true class; empty if the run has not been evaluated that way."""
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader should know about how it was read."""

    @property
    def metrics(self) -> list[str]:
        """Names of everything measured, in the order of their first appearance."""
        names = dict.fromkeys(key for record in self.records for key in record)
        return [name for name in names if name not in AXES]

    @property
    def seconds(self) -> float | None:
        """Training time over all restarts."""
        return next(
            (r["elapsed_seconds"] for r in self.records[::-1] if "elapsed_seconds" in r), None
        )

    def points(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of every record that has the metric."""
        return [(record["step"], record[metric]) for record in self.records if metric in record]

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


def is_run_directory(path: Path) -> bool:
    return any((path / name).is_file() for name in (FILE_NAME, SUMMARY, CONFIG))


def read_run_directory(path: Path) -> RunRecord:
    """Read OUTPUT_DIR/NAME/, also while the run is being written.

    Raises:
        InputError: If nothing has been recorded yet, or a file cannot be read.
    """
    raw, broken = _read_metrics(path / FILE_NAME)
    history = build_history(raw)
    if not history.records:
        raise InputError(
            f"the run in {path} is empty",
            expected=f"records in {FILE_NAME}",
            remedy="Wait for its first record, or leave it out.",
        )
    environment = _read_json(path / ENVIRONMENT)
    summary = _read_json(path / SUMMARY)
    evaluation = _read_json(path / EVALUATION)
    config = flatten_mapping(_read_yaml(path / CONFIG))
    notes = [f"{broken} unreadable lines of {path / FILE_NAME} are left out"] if broken else []
    return RunRecord(
        name=str(config.get("name") or path.resolve().name),
        source=str(path),
        config=config,
        records=history.records,
        status=str(summary.get("status", "unknown")),
        execution=_execution(environment),
        git_commit=short_commit(environment.get("git_commit"), environment.get("git_dirty")),
        world_size=environment.get("world_size"),
        hardware=_hardware(environment),
        group=config.get("logging.wandb.group"),
        confusion=_confusion(path / EVALUATION, evaluation),
        classes=[str(name) for name in evaluation.get("classes") or []],
        notes=notes + repeated_note(history.repeated),
    )


def flatten_mapping(content: dict[str, Any]) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping stays a value."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and (value or not prefix):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            yield prefix, value

    return dict(walk("", content))


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


def _execution(environment: dict[str, Any]) -> dict[str, str]:
    found = environment.get("execution")
    ways = found.items() if isinstance(found, dict) else ()
    return {
        f"runs as: {name}": str(way["way"])
        for name, way in ways
        if isinstance(way, dict) and "way" in way
    }


def _hardware(environment: dict[str, Any]) -> str | None:
    if environment.get("device") == "cuda" and environment.get("gpus"):
        return count_names([str(name) for name in environment["gpus"]])
    cpu, count = environment.get("cpu"), environment.get("cpu_count")
    instructions = environment.get("cpu_capability")  # not in runs of before
    return ", ".join(filter(None, (cpu, f"{count} CPUs", instructions))) if cpu else None


def _confusion(path: Path, evaluation: dict[str, Any]) -> list[list[int]]:
    matrix = evaluation.get("confusion_matrix") or []
    square = isinstance(matrix, list) and all(
        isinstance(row, list) and len(row) == len(matrix) for row in matrix
    )
    if not square or not all(isinstance(count, int | float) for row in matrix for count in row):
        raise InputError(f"{path}: confusion_matrix", expected="a row of counts for every class")
    return matrix


def _read_metrics(path: Path) -> tuple[list[Record], int]:
    """Records, and the number of lines that are none; the last line may still be growing."""
    try:
        text = read_text(path, most=MOST_RECORDED_BYTES)
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({reason})") from None
    *lines, last = text.split("\n")
    rows = [_parse(line) for line in lines if line.strip()]
    found = [row for row in [*rows, _parse(last)] if row is not None]
    return found, rows.count(None)


def _parse(line: str) -> Record | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    record = numbers(row) if isinstance(row, dict) else {}
    return record if math.isfinite(record.get("step", math.nan)) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(path, read_json(path, most=MOST_RECORDED_BYTES))
    except FileNotFoundError:
        return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path) if path.exists() else {}
    return _mapping(path, content if content is not None else {})


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(str(path), given=content, expected="a mapping")
    return content
