"""What a ranking is made of: finished runs, samples that nobody chose on, and no luck."""

from __future__ import annotations

import math
from typing import Any

import pytest

from launch.comparing.comparison import compare
from launch.comparing.run_record import RunRecord
from launch.comparing.tables import metric_cells, results_table


def run(
    name: str, values: list[float], metric: str = "eval/accuracy", status: str = "completed",
    seed: int = 0, **more: Any,
) -> RunRecord:  # fmt: skip
    records = [
        {"step": step, "epoch": float(step + 1), metric: value, **more}
        for step, value in enumerate(values)
    ]
    config = {"name": name, "seed": seed, "lr": name.rstrip("0123456789")}
    return RunRecord(name=name, source=name, config=config, records=records, status=status)


def order(*runs: RunRecord, **options: Any) -> list[str]:
    return [group.runs[0].name for group in compare(runs, **options).groups]


def column(title: str, *runs: RunRecord) -> list[str]:
    table = results_table(compare(runs))
    [index] = [i for i, name in enumerate(table.columns) if name.startswith(title)]
    return [row[index].text for row in table.rows]


def test_the_best_epoch_counts_on_validation_samples_only() -> None:
    """Law: what was chosen on the test set is judged by its final value, and that is said."""
    lucky, steady = [0.5, 0.9, 0.6], [0.7, 0.8, 0.7]
    ours = run("lucky", lucky, "val/accuracy"), run("steady", steady, "val/accuracy")
    assert order(*ours) == ["lucky", "steady"]
    assert compare(ours).by == "best"
    assert not compare(ours).notes
    theirs = run("lucky", lucky), run("steady", steady)
    assert order(*theirs) == ["steady", "lucky"]
    assert compare(theirs).by == "final"
    for by, where in (("best", "the order"), ("final", "its column")):
        [note] = compare(theirs, by=by).notes
        assert f"({where}) was chosen on the samples it was measured on" in note


def test_validation_ranks_where_most_runs_have_it() -> None:
    """Law: and the others are named as not ranked."""
    both = [
        run("a", [0.5], "val/accuracy", **{"test/accuracy": 0.9}),
        run("b", [0.6], "val/accuracy", **{"test/accuracy": 0.1}),
    ]
    assert compare(both).metric == "val/accuracy"
    assert order(*both) == ["b", "a"]
    mixed = compare([*both, run("c", [0.7])])
    assert mixed.metric == "val/accuracy"
    assert "Without val/accuracy, and so not ranked: c." in mixed.notes
    assert compare([both[0], run("c", [0.7]), run("d", [0.7])]).metric == "eval/accuracy"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (run("bad", [0.9, 0.1], status="failed"), "bad failed, so it ranks"),
        (
            run("bad", [0.9, 0.9], **{"train/loss": math.nan}),
            "bad diverged: its last train/loss is nan, so it ranks",
        ),
        (run("bad", [0.9, 0.9], **{"eval/loss": math.inf}), "bad diverged: its last eval/loss is"),
    ],
)
def test_a_run_that_diverged_ranks_behind_those_that_did_not(bad: RunRecord, why: str) -> None:
    assert order(bad, run("good", [0.2, 0.3]), by="best") == ["good", "bad"]
    assert any(note.startswith(why) for note in compare([bad]).notes)


def test_seeds_that_are_not_finished_are_left_out_and_counted() -> None:
    runs = [
        run("a1", [0.8, 0.8], seed=1),
        run("a2", [0.6, 0.6], seed=2),
        run("a3", [0.1, 0.1], seed=3, status="preempted", elapsed_seconds=999.0),
        run("b1", [0.5, 0.5], seed=1),
        run("c1", [0.4, 0.4], seed=1, status="running"),
    ]
    assert column("seeds", *runs) == ["2 of 3", "1", "1"]
    assert column("final eval/accuracy", *runs)[0].startswith("70.00")
    notes = compare(runs).notes
    assert column("training time", *runs)[0] == "-", "that of the seeds that count"
    assert (
        "a: 2 of 3 runs are finished; the others are left out in its numbers: a3 (preempted)."
        in notes
    )
    assert "Not finished: c1 (running)." in notes


def test_lengths_that_differ_are_said() -> None:
    long, short = run("long", [0.1, 0.9, 0.9, 0.9]), run("short", [0.1, 0.8])
    assert any("not equally long (2 to 4 epochs)" in note for note in compare([long, short]).notes)
    alike = compare([long, run("other", [0.1, 0.2, 0.2, 0.3])]).notes
    assert not any("equally" in note for note in alike)


def test_samples_that_differ_are_said() -> None:
    """Law: an accuracy on other samples is another quantity."""
    for key, metric, said in (
        ("data.dataset", "eval/accuracy", True),
        ("data.validation", "val/accuracy", True),
        ("data.validation", "eval/accuracy", False),
    ):
        runs = [run("a", [0.1], metric), run("b", [0.2], metric)]
        for one, value in zip(runs, (0.1, 0.2), strict=True):
            one.config[key] = value
        note = f"The runs are not evaluated on the same samples: {key} "
        assert any(n.startswith(note) for n in compare(runs).notes) == said


def test_less_is_better_where_the_reader_says_so() -> None:
    """Law: of a metric whose name tells nothing; in the order and the best value alike."""
    runs = run("far", [9.0], "val/distance"), run("near", [2.0, 3.0], "val/distance")
    found = compare(runs, lower=True)
    assert [group.name for group in found.groups] == ["near", "far"]
    table = results_table(found)
    assert [str(row[2]) for row in table.rows] == ["2", "9"]
    assert order(*runs) == ["far", "near"]


def test_a_value_that_is_not_a_number_leaves_the_others_as_they_are() -> None:
    cells = metric_cells("eval/accuracy", [[0.98], [math.nan], [0.9, 0.95]])
    assert [cell.text for cell in cells] == ["98.00 %", "nan", "92.50 ± 3.54 %"]


def test_only_what_the_test_tells_from_all_others_is_marked() -> None:
    """Law: neither luck nor one seed is crowned, and one close rival is enough against it."""

    def marked(*values: list[float]) -> list[bool]:
        return [cell.best for cell in metric_cells("eval/accuracy", list(values))]

    clear, close = [0.90, 0.91, 0.92], [0.905, 0.915, 0.92]
    assert marked([0.80, 0.81, 0.82], clear) == [False, True]
    assert marked([0.80, 0.81, 0.82], clear, close) == [False, False, False]
    assert marked(clear, [0.5]) == [False, False]
    assert marked([0.9], [0.5]) == [False, False]
    assert marked(clear) == [False]
    assert marked(clear, [math.nan], [0.1, 0.2, 0.3]) == [True, False, False]
