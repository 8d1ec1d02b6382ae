"""What a trial has reached so far, read from what it has recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.read_files import parse_json, read_json, read_text
from launch.comparing.metric_names import default_metric, is_chosen_on, lower_is_better
from launch.comparing.run_record import MOST_RECORDED_BYTES, RunRecord, read_run_directory
from launch.sweeping.trials import Sweep


def status(directory: Path) -> str:
    """What its summary says; empty if there is none yet."""
    try:
        content: Any = read_json(directory / "summary.json")
        return str(content["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def value_at(directory: Path, metric: str, epoch: float) -> float | None:
    """The metric of the first evaluation at or after an epoch; None before it."""
    try:
        lines = read_text(directory / "metrics.jsonl", most=MOST_RECORDED_BYTES).splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        try:
            record = parse_json(line)
        except ValueError:  # still being written
            continue
        if metric in record and record.get("epoch", 0.0) >= epoch:
            return float(record[metric])
    return None


def read_finished(folder: Path, sweep: Sweep) -> list[RunRecord]:
    """The trials that have recorded something, in their order."""
    directories = [folder / trial.name for trial in sweep.trials]
    return [read_run_directory(path) for path in directories if _has_records(path)]


def _has_records(directory: Path) -> bool:
    path = directory / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def deciding_metric(sweep: Sweep, runs: list[RunRecord]) -> tuple[str, bool]:
    """What decides, and whether more of it is better.

    A metric on the test set gives way to the same one on validation samples, where there are any.
    """
    metric = sweep.metric or default_metric(runs)
    higher = sweep.higher if sweep.metric else not lower_is_better(metric)
    own = f"val/{metric.rpartition('/')[2]}"
    if not is_chosen_on(metric) and any(own in run.metrics for run in runs):
        return own, higher
    return metric, higher
