"""Which runs are better, by how much, and what differs between them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError, did_you_mean
from launch.comparing.metric_names import all_metrics, default_metric, lower_is_better
from launch.comparing.ranking import By, Group, default_by, rank, reservations, scores
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import Welch, welch

SEEDS = {"seed", "random_seed", "manual_seed"}
"""Last parts of the keys that hold a seed."""
NOT_THE_CONFIG = ("name", "output_dir", "data.root", "data.download", "checkpoint", "logging")
"""Keys, or groups of keys, that may differ between two seeds of one config."""
NAMES = ("name", "output_dir")
"""Keys that differ between any two runs and say nothing."""


@dataclass(frozen=True, slots=True)
class Test:
    """How a group compares with the best one."""

    group: Group
    result: Welch | None
    counts: tuple[int, int]
    """Runs of the best group and of this one that have the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Groups from best to worst under one metric."""

    metric: str
    by: By
    lower: bool
    """Less is better."""
    groups: list[Group]
    tests: list[Test]
    """Every group against the best one."""
    differences: dict[str, list[list[Any]]]
    """Config key -> the values of each group's runs, for keys that are not the same in all."""
    notes: list[str]

    @property
    def runs(self) -> list[RunRecord]:
        return [run for group in self.groups for run in group.runs]

    def is_lower_better(self, metric: str) -> bool:
        return self.lower if metric == self.metric else lower_is_better(metric, self.runs)


class Absent:
    """Stands for a config key that a run does not have."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()


def compare(
    runs: Sequence[RunRecord],
    *,
    metric: str | None = None,
    by: By | None = None,
    lower: bool | None = None,
    by_seed: bool = True,
) -> Comparison:
    """Group, rank and test runs.

    Args:
        runs: One or more.
        metric: The metric that ranks; None: the accuracy on held-out samples or the closest thing.
        by: Rank by the best or by the final value; None: by the best one of a metric on validation
            samples, else by the final one.
        lower: Less of the metric is better; None: as its name tells.
        by_seed: Take runs together that differ only in their seed.

    Raises:
        InputError: If no run has the metric.
    """
    metric = metric or default_metric(runs)
    if not any(metric in run.metrics for run in runs):
        known = all_metrics(runs)
        expected, remedy = f"one of {', '.join(known)}", did_you_mean(metric, known)
        raise InputError("--metric", given=metric, expected=expected, remedy=remedy)
    by = by or default_by(metric)
    groups, notes = group_runs(runs, by_seed=by_seed)
    lower = lower_is_better(metric, runs) if lower is None else lower
    groups = rank(groups, metric, by, lower)
    return Comparison(
        metric=metric,
        by=by,
        lower=lower,
        groups=groups,
        tests=[_test(groups[0], group, metric, by, lower) for group in groups[1:]],
        differences=find_differences(groups),
        notes=[
            *reservations(groups, metric, by),
            *notes,
            *(f"{run.name}: {note}" for run in runs for note in run.notes),
        ],
    )


def group_runs(runs: Sequence[RunRecord], *, by_seed: bool) -> tuple[list[Group], list[str]]:
    """Runs that differ only in their seed become one group.

    Runs with the same seed are repeats of one experiment, or one run read twice; as independent
    samples they would make a difference look surer than it is, so they stay apart.
    """
    alike: dict[str, list[RunRecord]] = {}
    for index, run in enumerate(runs):
        key = _essence(run) if by_seed and _seeds(run) else f"run {index}"
        alike.setdefault(key, []).append(run)
    parts: list[list[RunRecord]] = []
    notes = []
    for bucket in alike.values():
        seeds = {_canonical(_seeds(run)) for run in bucket}
        if len(seeds) == len(bucket):
            parts.append(bucket)
        else:
            parts += [[run] for run in bucket]
            twice = ", ".join(run.name for run in bucket)
            notes.append(f"not grouped, because a seed occurs twice: {twice}")
    names = [_group_name(part) for part in parts]
    names = [
        _folder(part, runs) or _several(part) if len(part) > 1 and names.count(name) > 1 else name
        for name, part in zip(names, parts, strict=True)
    ]
    names = _unique(names, [part[0].source for part in parts])
    return [Group(name, tuple(part)) for name, part in zip(names, parts, strict=True)], notes


def find_differences(groups: Sequence[Group]) -> dict[str, list[list[Any]]]:
    """Keys whose value is not the same in all runs, with the values within each group.

    First those of the config, then how the runs were executed, as far as all of them say so.
    """
    runs = [run for group in groups for run in group.runs]
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NAMES)
    keys |= dict.fromkeys(key for key in runs[0].execution if all(key in r.execution for r in runs))
    found = {}
    for key in keys:
        if len({_canonical(_setting(run, key)) for run in runs}) > 1:
            found[key] = [_distinct(group.runs, key) for group in groups]
    return found


def _setting(run: RunRecord, key: str) -> Any:
    return run.config.get(key, run.execution.get(key, ABSENT))


def _test(best: Group, group: Group, metric: str, by: By, lower: bool) -> Test:
    ours, theirs = (scores(one, metric, by, lower) for one in (best, group))
    return Test(group, welch(ours, theirs), (len(ours), len(theirs)))


def _essence(run: RunRecord) -> str:
    """Everything in the config that makes it this config, but for the seed."""
    kept = {
        key: value
        for key, value in run.config.items()
        if not _is_seed(key)
        and not any(f"{key}.".startswith(f"{name}.") for name in NOT_THE_CONFIG)
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] in SEEDS


def _seeds(run: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if _is_seed(key)}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)


def _distinct(runs: Sequence[RunRecord], key: str) -> list[Any]:
    values = [_setting(run, key) for run in runs]
    return list({_canonical(value): value for value in values}.values())


def _group_name(runs: Sequence[RunRecord]) -> str:
    """What the names of a group have in common, without the word that announces the seed."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    letters = itertools.takewhile(lambda found: len(set(found)) == 1, zip(*names, strict=False))
    common = "".join(letter for letter, *_ in letters)
    if len(set(names)) > 1:
        common = re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", common)
    return common or _several(runs)


def _folder(part: Sequence[RunRecord], runs: Sequence[RunRecord]) -> str:
    """The name of the folder that holds these runs and no others, as that of a sweep over seeds."""
    inside = {str(Path(run.source).parent) for run in part}
    mine = {id(run) for run in part}
    outside = {str(Path(run.source).parent) for run in runs if id(run) not in mine}
    return Path(*inside).name if len(inside) == 1 and not inside & outside else ""


def _several(runs: Sequence[RunRecord]) -> str:
    return f"{runs[0].name} and {len(runs) - 1} more"


def _unique(names: list[str], sources: list[str]) -> list[str]:
    """Names that occur once; where one occurs twice, where it was read from."""
    return [
        f"{name} ({source})" if names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]
