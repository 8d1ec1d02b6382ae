"""Grouping by seed, ranking, and what differs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from configs.errors import InputError
from launch.compare import fit
from launch.comparing.comparison import ABSENT, compare
from launch.comparing.metric_names import default_metric, lower_is_better
from launch.comparing.run_record import RunRecord, selection
from launch.comparing.tables import Cell, Table


def run(name: str, values: list[float], metric: str = "eval/accuracy", **config: Any) -> RunRecord:
    return RunRecord(
        name=name,
        source=f"runs/{name}",
        config={"name": name, "optimizer.lr": 0.1, **config},
        records=[{"step": step, metric: value} for step, value in enumerate(values)],
        status="completed",
    )


def names(runs: list[RunRecord], **options: Any) -> list[list[str]]:
    return [[run.name for run in group.runs] for group in compare(runs, **options).groups]


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("eval/loss", True), ("val_loss", True), ("error_rate", True), ("test-perplexity", True),
        ("RMSE", True), ("eval/accuracy", False), ("f1", False), ("reloss", False),
        ("train/samples_per_second", False), ("auroc", False),
    ],
)  # fmt: skip
def test_the_direction_follows_from_the_words_of_the_name(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        (["train/loss", "eval/loss", "eval/accuracy", "test/accuracy"], "eval/accuracy"),
        (["loss", "acc", "val_loss", "val_acc"], "val_acc"),
        (["loss", "acc", "val_loss"], "val_loss"),
        (["lr", "train_loss", "loss"], "loss"),
        (["lr", "reward"], "lr"),
        (["gradients/a/norm", "reward"], "reward"),
    ],
)
def test_the_ranking_metric_is_the_one_closest_to_test_accuracy(
    known: list[str], chosen: str
) -> None:
    record = {"step": 1.0} | dict.fromkeys(known, 0.5)
    one = RunRecord(name="a", source="a", config={}, records=[record], status="running")
    assert default_metric([one]) == chosen


def test_best_and_final_may_rank_differently_and_lower_may_be_better() -> None:
    runs = [run("a", [0.5, 0.9, 0.6]), run("b", [0.7, 0.8])]
    assert names(runs, by="best") == [["a"], ["b"]]
    assert names(runs, by="final") == [["b"], ["a"]]
    losses = [run("a", [0.5, 0.1, 0.6], "eval/loss"), run("b", [0.7, 0.2], "eval/loss")]
    assert names(losses, by="best") == [["a"], ["b"]]
    assert names(losses, by="final") == [["b"], ["a"]]


def test_a_run_says_by_which_metric_it_is_judged_and_which_way_is_better() -> None:
    """Law: the words of a name are asked only where no run says it."""
    records = [{"step": 1.0, "eval/accuracy": 0.9, "eval/miss": miss} for miss in (0.2, 0.1)]
    said = {"selected_by": "miss", "higher_is_better": {"accuracy": True, "miss": False}}
    bad, good = (
        replace(run(name, []), records=[record], **said)
        for name, record in zip(("bad", "good"), records, strict=True)
    )
    found = compare([bad, good])
    assert (found.metric, found.lower) == ("eval/miss", True)
    assert names([bad, good]) == [["good"], ["bad"]]
    assert compare([bad, good], metric="eval/accuracy").lower is False


@pytest.mark.parametrize(
    ("config", "summary", "expected"),
    [
        ({}, {}, (None, {})),
        ({"evaluate.best": "miss", "evaluate.best_mode": "min"}, {}, ("miss", {"miss": False})),
        ({"evaluate.best": "miss", "evaluate.best_mode": "auto"}, {}, ("miss", {})),
        (
            {"evaluate.best_mode": "auto"},
            {"selected_by": "f1", "higher_is_better": {"f1": True, "bad": 3}},
            ("f1", {"f1": True}),
        ),
        ({}, {"higher_is_better": "nonsense"}, (None, {})),
    ],
)
def test_the_summary_tells_how_a_run_is_judged_or_else_the_config(
    config: dict[str, Any], summary: dict[str, Any], expected: tuple[str | None, dict[str, bool]]
) -> None:
    found = selection(config, summary)
    assert (found["selected_by"], found["higher_is_better"]) == expected


def test_runs_without_a_number_come_last() -> None:
    runs = [run("none", [1.0], "other"), run("nan", [math.nan]), run("a", [0.1]), run("b", [0.2])]
    assert [group[0] for group in names(runs)][:2] == ["b", "a"]
    assert {group[0] for group in names(runs, by="final")[2:]} == {"none", "nan"}


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'accuracy'.*eval/accuracy"):
        compare([run("a", [1.0])], metric="accuracy")


def test_runs_that_differ_only_in_their_seed_are_one_group() -> None:
    """Law: any other key of the mathematics keeps runs apart; where and how they are logged not."""
    same = [
        run("x-seed0", [0.1], seed=0),
        run("x-seed1", [0.2], seed=1, output_dir="/elsewhere"),
        run("x-seed2", [0.3], **{"seed": 2, "logging.every_steps": 5, "checkpoint.keep": 9}),
    ]
    other = run("y", [0.9], **{"seed": 3, "optimizer.momentum": 0.5})
    found = compare([*same, other])
    assert [(group.name, len(group.runs)) for group in found.groups] == [("y", 1), ("x", 3)]
    assert len(compare([*same, other], by_seed=False).groups) == 4


def test_one_seed_twice_is_not_two_samples() -> None:
    """Law: a run read twice makes no difference look surer."""
    found = compare([run("a", [0.1], seed=0), run("b", [0.1], seed=0), run("c", [0.2], seed=1)])
    assert [len(group.runs) for group in found.groups] == [1, 1, 1]
    assert any("a seed occurs twice: a, b, c" in note for note in found.notes)


def test_runs_without_a_seed_are_never_grouped() -> None:
    assert len(compare([run("a", [0.1]), run("b", [0.1])]).groups) == 2


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["study-s0", "study-s1"], "study"),
        (["lr_0.1_seed=1", "lr_0.1_seed=22"], "lr_0.1"),
        (["same", "same"], "same"),
        (["one", "two"], "one and 1 more"),
        (["0", "1"], "0 and 1 more"),
    ],
)
def test_a_group_is_called_what_its_names_share(given: list[str], name: str) -> None:
    runs = [run(each, [0.1], seed=seed) for seed, each in enumerate(given)]
    assert [group.name for group in compare(runs).groups] == [name]


def test_groups_of_one_name_are_told_apart() -> None:
    runs = [run("a", [0.1], x=1), replace(run("a", [0.2], x=2), source="elsewhere/a")]
    assert {group.name for group in compare(runs).groups} == {"a (runs/a)", "a (elsewhere/a)"}


def test_groups_of_one_name_are_called_after_their_first_run() -> None:
    """Law: as the trials of a sweep are, whose names are numbers."""
    runs = [run(f"trial_{n}", [0.1], seed=n % 2, x=n // 2) for n in range(4)]
    assert [g.name for g in compare(runs).groups] == ["trial_0 and 1 more", "trial_2 and 1 more"]
    sweeps = [
        replace(each, source=f"runs/{'ab'[n // 2]}/{each.name}") for n, each in enumerate(runs)
    ]
    assert {group.name for group in compare(sweeps).groups} == {"a", "b"}


def test_how_runs_were_executed_is_a_difference_if_all_of_them_say_so() -> None:
    ways = [{"runs as: steps": "one by one", "runs as: data": "on the device"}]
    ways.append({**ways[0], "runs as: steps": "up to 10 in a row"})
    first, second = (
        replace(run(name, [1.0]), execution=way) for name, way in zip("ab", ways, strict=True)
    )
    found = compare([first, second]).differences
    assert found == {"runs as: steps": [["one by one"], ["up to 10 in a row"]]}
    assert compare([first, replace(second, execution={})]).differences == {}


def test_differences_are_the_keys_that_are_not_the_same_in_all() -> None:
    runs = [
        run("a", [0.1], **{"seed": 0, "optimizer.lr": 0.1, "model.hidden": [1]}),
        run("b", [0.2], **{"seed": 1, "optimizer.lr": 0.1, "model.hidden": [1]}),
        run("c", [0.9], **{"seed": 0, "optimizer.lr": 0.3, "model.hidden": [1], "new": None}),
    ]
    found = compare(runs)
    assert [group.runs[0].name for group in found.groups] == ["c", "a"]
    assert found.differences == {
        "optimizer.lr": [[0.3], [0.1]],
        "seed": [[0], [0, 1]],
        "new": [[None], [ABSENT]],
    }


def test_every_group_is_tested_against_the_best() -> None:
    def seeds(name: str, values: list[float], lr: float) -> list[RunRecord]:
        return [
            run(f"{name}-s{seed}", [value], **{"seed": seed, "optimizer.lr": lr})
            for seed, value in enumerate(values)
        ]

    runs = [
        *seeds("good", [0.90, 0.91, 0.92], 0.1),
        *seeds("close", [0.905, 0.91, 0.90], 0.2),
        *seeds("bad", [0.10, 0.11, 0.12], 0.3),
        *seeds("alone", [0.05], 0.4),
    ]
    found = compare(runs)
    assert [group.name for group in found.groups] == ["good", "close", "bad", "alone-s0"]
    close, bad, alone = (test.result for test in found.tests)
    assert close is not None
    assert bad is not None
    assert close.p > 0.05 > 1e-4 > bad.p
    assert bad.difference == pytest.approx(0.8)
    assert alone is None
    assert found.tests[2].counts == (3, 1)


# ------------------------------------------------------------------ the terminal


def many_columns(rows: int) -> Table:
    names = ["run", "status", "best a", "final a", "step", "samples/s", "final b"]
    long = [[Cell(name * 3) for name in names] for _ in range(rows - 1)]
    return Table("Results", names, [*long, [Cell("x" * 80), *(Cell("y") for _ in names[1:])]])


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (300, []),
        (110, ["step", "samples/s", "status"]),
        (90, ["step", "samples/s", "status", "final b"]),
        (20, ["step", "samples/s", "status", "final b", "best a"]),
    ],
)
def test_a_narrow_terminal_gets_the_columns_that_matter(width: int, left_out: list[str]) -> None:
    """Law: the metric that ranks stays; and few runs stand side by side."""
    table, missing = fit(many_columns(20), width, keep="final a")
    assert missing == left_out
    assert table.columns == [name for name in many_columns(1).columns if name not in left_out]
    turned, missing = fit(many_columns(3), width, keep="final a")
    assert (len(turned.rows), missing) == ((3, []) if width == 300 else (6, []))
