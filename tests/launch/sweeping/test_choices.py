"""What a sweep chooses, from records written by hand: no trial is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from launch.sweeping.conclusion import conclusion
from launch.sweeping.running import Halved, Runner, halve
from launch.sweeping.trial_progress import Watch, deciding_metric, read_recorded, value_at
from launch.sweeping.trials import Sweep, Trial
from trainer.ranks.stop_signals import StopRequest

Course = Sequence[float | None]


def write(
    folder: Path, trial: Trial, course: Course, *, metric: str, status: str = "completed"
) -> None:
    """A run that was evaluated after every epoch; None: it was not."""
    run = folder / trial.name
    run.mkdir()
    rows: list[dict[str, Any]] = []
    for epoch, value in enumerate(course, start=1):
        rows.append({"step": 10 * epoch, "epoch": float(epoch), "train/accuracy": 1.0})
        if value is not None:
            rows.append({"step": 10 * epoch, "epoch": float(epoch), metric: value})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"name": trial.name, "seed": 0} | trial.overrides
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "summary.json").write_text(json.dumps({"status": status}))


def make(
    folder: Path,
    courses: dict[tuple[float, int], Course],
    *,
    metric: str = "val/accuracy",
    named: str | None = "val/accuracy",
    statuses: dict[int, str] | None = None,
) -> Sweep:
    """A sweep of (rate, seed), all of whose trials are written down."""
    trials = [
        Trial(f"trial_{n}", {"lr": rate, "seed": seed})
        for n, (rate, seed) in enumerate(courses, start=1)
    ]
    for n, (trial, course) in enumerate(zip(trials, courses.values(), strict=True), start=1):
        write(folder, trial, course, metric=metric, status=(statuses or {}).get(n, "completed"))
    return Sweep(trials, named, None, None)


def halved(folder: Path, sweep: Sweep, at: Sequence[int], factor: int = 2) -> Halved:
    def metric() -> tuple[str, bool]:
        return deciding_metric(sweep, read_recorded(folder, sweep.trials))

    runner = Runner(folder, [], StopRequest(), lambda line: None, metric)
    return halve(runner, sweep.configs, at=at, factor=factor)


def names(trials: Sequence[Trial]) -> list[str]:
    return [trial.name for trial in trials]


def chosen(folder: Path, sweep: Sweep, left: dict[str, Any] | None = None) -> dict[str, Any]:
    runs = read_recorded(folder, sweep.trials)
    metric, higher = deciding_metric(sweep, runs)
    return conclusion(sweep, runs, metric, higher, left or {})[1]


def test_a_rung_looks_at_its_own_epoch(tmp_path: Path) -> None:
    """Law: how far a trial got before it was stopped decides nothing, nor is it written down."""
    sweep = make(tmp_path, {(1.0, 0): [0.2, 0.9, 0.9], (2.0, 0): [0.5, 0.3, 0.3]})
    found = halved(tmp_path, sweep, at=[1])
    assert names(found.survivors) == ["trial_2"]
    assert found.left == {"trial_1": (1, 0.2)}
    result = chosen(tmp_path, sweep, found.left)
    assert result["trials"][0]["val/accuracy"] == 0.2
    assert (result["trials"][0]["status"], result["trials"][0]["epoch"]) == ("left", 1)
    assert result["best"]["trials"] == ["trial_2"], "though what was left behind got further"


def test_halving_keeps_configs_by_the_mean_over_their_seeds(tmp_path: Path) -> None:
    """Law: one lucky seed keeps no config; one without a number of each seed does not go on."""
    courses: dict[tuple[float, int], Course] = {
        (1.0, 0): [0.9], (1.0, 1): [0.1],
        (2.0, 0): [0.6], (2.0, 1): [0.6],
        (3.0, 0): [0.95], (3.0, 1): [math.nan],
    }  # fmt: skip
    found = halved(tmp_path, make(tmp_path, courses), at=[1], factor=3)
    assert names(found.survivors) == ["trial_3", "trial_4"]
    assert set(found.left) == {"trial_1", "trial_2", "trial_5", "trial_6"}


def test_a_trial_that_ended_before_a_rung_counts_with_its_end(tmp_path: Path) -> None:
    """Law: with train.max_steps, say; at no rung is the first of the file kept for being first."""
    courses: dict[tuple[float, int], Course] = {(1.0, 0): [0.1], (2.0, 0): [0.4], (3.0, 0): [0.2]}
    found = halved(tmp_path, make(tmp_path, courses), at=[5], factor=3)
    assert names(found.survivors) == ["trial_2"]


def test_none_goes_on_where_none_has_a_number(tmp_path: Path) -> None:
    courses: dict[tuple[float, int], Course] = {(1.0, 0): [math.nan], (2.0, 0): [math.inf]}
    found = halved(tmp_path, make(tmp_path, courses), at=[1])
    assert found.survivors == []
    assert set(found.left) == {"trial_1", "trial_2"}


def test_the_best_config_is_the_best_in_the_mean_over_its_seeds(tmp_path: Path) -> None:
    courses: dict[tuple[float, int], Course] = {
        (1.0, 0): [0.99], (1.0, 1): [0.1], (2.0, 0): [0.7], (2.0, 1): [0.8],
    }  # fmt: skip
    best = chosen(tmp_path, make(tmp_path, courses))["best"]
    assert best["trials"] == ["trial_3", "trial_4"]
    assert best["overrides"] == {"lr": 2.0}
    assert best["mean"] == pytest.approx(0.75)
    assert best["std"] == pytest.approx(0.0707, abs=1e-4)


def test_a_config_of_which_a_seed_failed_gives_way_to_one_that_came_to_its_end(
    tmp_path: Path,
) -> None:
    """Law: the seeds that are left of it are those that went well."""
    courses: dict[tuple[float, int], Course] = {
        (1.0, 0): [0.99], (1.0, 1): [0.1], (2.0, 0): [0.7], (2.0, 1): [0.8],
    }  # fmt: skip
    sweep = make(tmp_path, courses, statuses={2: "failed"})
    assert chosen(tmp_path, sweep)["best"]["trials"] == ["trial_3", "trial_4"]


@pytest.mark.parametrize(
    ("named", "recorded", "decides"),
    [
        ("eval/accuracy", "val/accuracy", "val/accuracy"),
        ("test/accuracy", "val/accuracy", "val/accuracy"),
        ("val/accuracy", "eval/accuracy", "eval/accuracy"),
        (None, "val/accuracy", "val/accuracy"),
        ("train/accuracy", "val/accuracy", "train/accuracy"),
    ],
)
def test_validation_decides_where_there_is_some(
    named: str | None, recorded: str, decides: str, tmp_path: Path
) -> None:
    sweep = make(tmp_path, {(1.0, 0): [0.5]}, metric=recorded, named=named)
    assert deciding_metric(sweep, read_recorded(tmp_path, sweep.trials)) == (decides, True)


def test_a_metric_that_nothing_recorded_is_refused_with_those_that_are(tmp_path: Path) -> None:
    sweep = make(tmp_path, {(1.0, 0): [0.5]}, named="val/acuracy")
    with pytest.raises(InputError, match=r"metric.name: given 'val/acuracy'.*val/accuracy"):
        deciding_metric(sweep, read_recorded(tmp_path, sweep.trials))


def test_the_goal_of_the_file_wins_over_the_words_of_the_name(tmp_path: Path) -> None:
    courses: dict[tuple[float, int], Course] = {(1.0, 0): [9.0], (2.0, 0): [2.0]}
    sweep = make(tmp_path, courses, metric="val/distance", named="val/distance")
    assert chosen(tmp_path, sweep)["best"]["trials"] == ["trial_1"]
    less = Sweep(sweep.trials, sweep.metric, False, None)
    assert chosen(tmp_path, less)["best"]["trials"] == ["trial_2"]


def test_an_epoch_counts_once_it_is_evaluated(tmp_path: Path) -> None:
    """Law: records of training reach no rung, and half a line is none; a run begun anew is seen."""
    trial = Trial("trial_1", {})
    write(tmp_path, trial, [0.5, None], metric="val/accuracy")
    watch, path = Watch(tmp_path / "trial_1"), tmp_path / "trial_1" / "metrics.jsonl"
    assert watch.evaluated() == 1.0
    with path.open("a") as file:
        file.write('{"step": 20, "epoch": 2.0, "val/acc')
    assert watch.evaluated() == 1.0
    with path.open("a") as file:
        file.write('uracy": 0.7}\n')
    assert watch.evaluated() == 2.0
    path.write_text('{"step": 1, "epoch": 0.1, "train/loss": 1.0}\n')
    assert watch.evaluated() == -1.0
    assert Watch(tmp_path / "none").evaluated() == -1.0


def test_a_value_at_a_rung_that_an_unfinished_trial_has_not_reached_is_none(
    tmp_path: Path,
) -> None:
    sweep = make(tmp_path, {(1.0, 0): [0.5, 0.6]}, statuses={1: "preempted"})
    [run] = read_recorded(tmp_path, sweep.trials)
    assert value_at(run, "val/accuracy", 2) == 0.6
    assert value_at(run, "val/accuracy", 3) is None


def test_a_trial_that_somebody_else_stopped_is_left_to_do(tmp_path: Path) -> None:
    """Law: neither finished nor failed: the sweep is not over."""
    courses: dict[tuple[float, int], Course] = {(n, 0): [0.5] for n in (1.0, 2.0, 3.0)}
    sweep = make(tmp_path, courses, statuses={2: "preempted", 3: "failed"})
    runner = Runner(tmp_path, [], StopRequest(), lambda line: None, lambda: ("val/accuracy", True))
    runner.failures["trial_3"] = "out of memory"
    assert names(runner.unfinished(sweep.trials)) == ["trial_2"]
