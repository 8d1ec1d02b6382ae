"""What a sweep came to: every trial with its value, and the config that is best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparing.comparison import Comparison, compare
from launch.comparing.ranking import Group, failure, score, scores
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import spread
from launch.sweeping.trials import Sweep, without_seed


def conclusion(
    sweep: Sweep,
    runs: Sequence[RunRecord],
    metric: str,
    higher: bool,
    left: Mapping[str, tuple[int, float | None]],
) -> tuple[Comparison, dict[str, Any]]:
    """Compare the trials and choose among the configs, by the mean over their seeds.

    Args:
        sweep: All trials.
        runs: What they recorded.
        metric: What decides.
        higher: Whether more of it is better.
        left: Trials that were not trained to their end, with the epoch and their value there: how
            far they got after that depends on the clock, and is not said.

    Returns:
        The comparison, and the content of sweep.json, which is the same however often the sweep was
        interrupted.
    """
    comparison = compare(runs, metric=metric, lower=not higher)
    known = {run.name: run for run in runs}
    trials = []
    for trial in sweep.trials:
        row: dict[str, Any] = {"name": trial.name, "overrides": trial.overrides}
        if trial.name in left:
            epoch, value = left[trial.name]
            row |= {"status": "left", "epoch": epoch, metric: value}
        elif trial.name in known:
            run = known[trial.name]
            value = score(run, metric, comparison.by, not higher)
            row |= {"status": run.status, metric: value}
        else:
            row |= {"status": "failed", metric: None}
        if row[metric] is not None and not math.isfinite(row[metric]):
            row[metric] = None
        trials.append(row)
    best = _best(sweep, comparison, left)
    return comparison, {"metric": metric, "by": comparison.by, "best": best, "trials": trials}


def _best(
    sweep: Sweep, comparison: Comparison, left: Mapping[str, object]
) -> dict[str, Any] | None:
    """The first config of the ranking whose runs all came to their end; else the first with one."""
    groups = [group for group in comparison.groups if _eligible(group, comparison, left)]
    whole = [group for group in groups if len(group.finished) == len(group.runs)]
    group = next(iter([*whole, *groups]), None)
    if group is None:
        return None
    found = spread(scores(group, comparison.metric, comparison.by, comparison.lower))
    names = [run.name for run in group.finished]
    overrides = next(t.overrides for t in sweep.trials if t.name == names[0])
    return {
        "trials": names,
        "overrides": without_seed(overrides) if len(group.runs) > 1 else overrides,
        "mean": found.mean,
        "std": found.std,
    }


def _eligible(group: Group, comparison: Comparison, left: Mapping[str, object]) -> bool:
    """Whether a run of it was trained to its end, and has a number that counts."""
    values = scores(group, comparison.metric, comparison.by, comparison.lower)
    return (
        bool(group.finished and values)
        and all(map(math.isfinite, values))
        and not any(run.name in left or failure(run) for run in group.finished)
    )
