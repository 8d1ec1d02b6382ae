"""Which runs count, with which value, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.comparing.metric_names import is_chosen_on, lower_is_better, words_of
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import spread

By = Literal["best", "final"]
UNFINISHED = ("running", "preempted", "failed", "crashed", "killed")
"""Words for a run that has not come to its end."""
ALIKE = 1.02
"""Lengths of runs that differ by less than this factor are equal."""


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


def has_diverged(run: RunRecord) -> bool:
    """Whether it failed, or the last loss it recorded is not finite."""
    losses = [
        value for name in run.metrics if "loss" in words_of(name) for value in [run.final(name)]
    ]
    return run.status == "failed" or any(v is not None and not math.isfinite(v) for v in losses)


def default_by(metric: str) -> By:
    """The best value of what is there to be chosen on; of any other metric the final one, since its
    best was picked among many by the very samples that are to judge it."""
    return "best" if is_chosen_on(metric) else "final"


def score(run: RunRecord, metric: str, by: By) -> float | None:
    """Best or final value of a run; None without one."""
    if by == "final":
        return run.final(metric)
    best = run.best(metric, lower=lower_is_better(metric))
    return best[0] if best else None


def scores(group: Group, metric: str, by: By) -> list[float]:
    """The scores of the runs that count and have the metric."""
    return [value for run in group.counted if (value := score(run, metric, by)) is not None]


def rank(groups: Sequence[Group], metric: str, by: By) -> list[Group]:
    """Best first; then those that diverged, and those without a number last."""

    def key(group: Group) -> tuple[bool, bool, float]:
        found = scores(group, metric, by)
        mean = spread(found).mean if found else math.nan
        diverged = any(has_diverged(run) for run in group.counted)
        return math.isnan(mean), diverged, mean if lower_is_better(metric) else -mean

    return sorted(groups, key=key)


def reservations(groups: Sequence[Group], metric: str, by: By) -> Iterator[str]:
    """What is to be said beside a ranking: what is not in it, and what makes it unfair."""
    if by == "best" and not is_chosen_on(metric):
        yield (
            f"The best {metric} was chosen on the samples it was measured on, so it is too good: "
            "quote the final value (--by final), or train with data.validation."
        )
    for group in groups:
        for run in group.counted:
            if has_diverged(run):
                yield f"{run.name} diverged or failed, so it ranks behind those that did not."
        left = len(group.runs) - len(group.finished)
        if left and len(group.runs) > 1:
            what = "left out" if group.finished else "not finished"
            done = f"{len(group.finished)} of {len(group.runs)} runs are finished"
            yield f"{group.name}: {done}; the others are {what} in its numbers."
        elif left:
            yield f"{group.name} is {group.runs[0].status}, not finished."
    lacking = [run.name for group in groups for run in group.runs if metric not in run.metrics]
    if lacking:
        yield f"Without {metric}, and so not ranked: {', '.join(lacking)}."
    lengths = [_length(run) for group in groups for run in group.counted]
    known = [length for length in lengths if length]
    if known and max(known) > ALIKE * min(known):
        yield (
            f"The runs are not equally long ({min(known):g} to {max(known):g} epochs): a longer "
            "one had more to gain by."
        )


def _length(run: RunRecord) -> float:
    """Epochs; 0 where they are not recorded."""
    return float(run.records[-1].get("epoch", 0.0))
