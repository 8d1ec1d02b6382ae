"""Which runs count, with which value, and in which order."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.comparing.metric_names import is_chosen_on, is_held_out, words_of
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import spread

By = Literal["best", "final"]
UNFINISHED = ("running", "preempted", "failed", "crashed", "killed")
"""Words for a run that has not come to its end."""
ALIKE = 1.02
"""Lengths of runs that differ by less than this factor are equal."""
SAMPLES = ("data.dataset", "data.test")
"""Config keys that decide on which samples a run is evaluated."""


def add_ranking_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that decide on the order of runs."""
    parser.add_argument(
        "--metric",
        help="ranks the runs (default: what they were selected by, as val/accuracy)",
    )
    parser.add_argument(
        "--by",
        choices=("best", "final"),
        help="value of the metric that counts (default: the best on validation samples, else the "
        "final one)",
    )
    parser.add_argument(
        "--group",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="take runs that differ only in their seed together (default)",
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in nothing but their seed; usually one."""

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.status not in UNFINISHED)

    @property
    def counted(self) -> tuple[RunRecord, ...]:
        """The runs that its numbers are of: the finished ones, if there are any."""
        return self.finished or self.runs


def failure(run: RunRecord) -> str | None:
    """What became of a run that failed, or whose last loss is not finite; None of any other."""
    for name in run.metrics:
        value = run.final(name)
        if "loss" in words_of(name) and value is not None and not math.isfinite(value):
            return f"diverged: its last {name} is {value}"
    return "failed" if run.status == "failed" else None


def default_by(metric: str) -> By:
    """The best value of what is there to be chosen on; of any other metric the final one, since its
    best was picked among many by the very samples that are to judge it."""
    return "best" if is_chosen_on(metric) else "final"


def score(run: RunRecord, metric: str, by: By, lower: bool) -> float | None:
    """Best or final value of a run; None without one."""
    if by == "final":
        return run.final(metric)
    best = run.best(metric, lower=lower)
    return best[0] if best else None


def scores(group: Group, metric: str, by: By, lower: bool) -> list[float]:
    """The scores of the runs that count and have the metric."""
    found = (score(run, metric, by, lower) for run in group.counted)
    return [value for value in found if value is not None]


def rank(groups: Sequence[Group], metric: str, by: By, lower: bool) -> list[Group]:
    """Best first; then those that diverged, and those without a number last."""

    def key(group: Group) -> tuple[bool, bool, float]:
        found = scores(group, metric, by, lower)
        mean = spread(found).mean if found else math.nan
        diverged = any(failure(run) for run in group.counted)
        return math.isnan(mean), diverged, mean if lower else -mean

    return sorted(groups, key=key)


def reservations(groups: Sequence[Group], metric: str, by: By) -> Iterator[str]:
    """What is to be said beside a ranking: what is not in it, and what makes it unfair."""
    runs = [run for group in groups for run in group.runs]
    counted = [run for group in groups for run in group.counted]
    if is_held_out(metric) and not is_chosen_on(metric):
        where = "the order" if by == "best" else "its column"
        if any(len(run.points(metric)) > 1 for run in runs):
            yield (
                f"The best {metric} ({where}) was chosen on the samples it was measured on, the "
                "test set, so it is too good: quote the final value, or train with data.validation."
            )
    for run in counted:
        if why := failure(run):
            yield f"{run.name} {why}, so it ranks behind those that did not."
    yield from _unfinished(groups)
    lacking = [run.name for run in runs if metric not in run.metrics]
    if lacking:
        yield f"Without {metric}, and so not ranked: {', '.join(lacking)}."
    lengths = [length for run in counted if (length := _length(run))]
    if lengths and max(lengths) > ALIKE * min(lengths):
        yield (
            f"The runs are not equally long ({min(lengths):g} to {max(lengths):g} epochs): a "
            "longer one had more to gain by."
        )
    for key in (*SAMPLES, *["data.validation"] * is_chosen_on(metric)):
        values = {str(run.config[key]): None for run in counted if key in run.config}
        if len(values) > 1:
            yield f"The runs are not evaluated on the same samples: {key} {', '.join(values)}."


def _unfinished(groups: Sequence[Group]) -> Iterator[str]:
    """Seeds that their group's numbers leave out, and runs that have not come to their end."""
    alone = []
    for group in groups:
        left = [run for run in group.runs if run.status in UNFINISHED]
        if left and len(group.runs) == 1:
            alone.append(f"{group.name} ({left[0].status})")
        elif left:
            what = "left out" if group.finished else "not finished"
            done = f"{len(group.finished)} of {len(group.runs)} runs are finished"
            others = ", ".join(f"{run.name} ({run.status})" for run in left)
            yield f"{group.name}: {done}; the others are {what} in its numbers: {others}."
    if alone:
        yield f"Not finished: {', '.join(alone)}."


def _length(run: RunRecord) -> float:
    """Epochs; 0 where they are not recorded."""
    return float(run.records[-1].get("epoch", 0.0))
