"""What a trial has reached so far, read from what it has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.read_files import parse_json, read_json
from launch.comparing.followed_run import read_run_directory
from launch.comparing.metric_names import (
    all_metrics,
    default_metric,
    is_held_out,
    lower_is_better,
)
from launch.comparing.run_record import RunRecord
from launch.sweeping.trials import Sweep, Trial

EVALUATIONS = ("val/", "eval/")
"""What the names of an evaluation's values begin with, while a run is trained."""


def status(directory: Path) -> str:
    """What its summary says; empty if there is none yet."""
    try:
        content: Any = read_json(directory / "summary.json")
        return str(content["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Watch:
    """How far a trial has been evaluated; it reads what is new, so it may be asked often."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "metrics.jsonl"
        self._position = 0
        self._epoch = -1.0

    def evaluated(self) -> float:
        """The epoch of its latest evaluation; -1 before the first."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._position:  # cut, or begun anew
                    self._position, self._epoch = 0, -1.0
                file.seek(self._position)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return self._epoch
        self._position += len(whole) + len(newline)
        for line in whole.splitlines():
            if any(f'"{name}'.encode() in line for name in EVALUATIONS):
                self._epoch = max(self._epoch, _epoch(line.decode(errors="replace")))
        return self._epoch


def value_at(run: RunRecord, metric: str, epoch: float) -> float | None:
    """The metric as it stood at the first evaluation at or after an epoch, however far the run got;
    of one that was completed before, the last value; of any other None."""
    value = None
    for record in run.records:
        value = record.get(metric, value)
        if record.get("epoch", 0.0) >= epoch and any(key.startswith(EVALUATIONS) for key in record):
            return value
    return value if run.status == "completed" else None


def read_recorded(folder: Path, trials: list[Trial]) -> list[RunRecord]:
    """The trials that have recorded something, in their order."""
    directories = [folder / trial.name for trial in trials]
    return [read_run_directory(path) for path in directories if _has_records(path)]


def _has_records(directory: Path) -> bool:
    path = directory / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def _epoch(line: str) -> float:
    try:
        return float(parse_json(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return -1.0


def deciding_metric(sweep: Sweep, runs: list[RunRecord]) -> tuple[str, bool]:
    """What decides, and whether more of it is better.

    A metric on held-out samples means that of validation samples where there are any, and that of
    the test set where there are none.

    Raises:
        InputError: If no run has it.
    """
    metric = sweep.metric or default_metric(runs)
    own = metric.rpartition("/")[2]
    names = (f"val/{own}", metric, f"eval/{own}") if is_held_out(metric) else (metric,)
    known = all_metrics(runs)
    found = next((name for name in names if name in known), None)
    if found is None:
        raise InputError("metric.name", given=metric, expected=f"one of {', '.join(known)}")
    return found, not lower_is_better(found, runs) if sweep.higher is None else sweep.higher
