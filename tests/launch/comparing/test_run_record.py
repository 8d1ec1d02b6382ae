"""Reading runs: directories, offline W&B directories, and what a user calls them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from configs.errors import InputError, closest_run
from launch.comparing.followed_run import read_run_directory
from launch.comparing.history import build_history, from_wandb, numbers
from launch.comparing.run_record import flatten_mapping
from launch.comparing.run_sources import read_runs
from launch.comparing.wandb_offline import find_wandb_files, read_offline
from tests.support.sample_runs import Row, rows, write_offline, write_run

pytestmark = pytest.mark.usefixtures("wandb_stays_here")


# ------------------------------------------------------------------ history


def steps(raw: list[Row]) -> list[float]:
    return [record["step"] for record in build_history([numbers(row) for row in raw]).records]


def test_rows_of_one_step_are_one_record_and_the_latest_value_wins() -> None:
    """Law: a step occurs once."""
    raw = [{"step": 1, "a": 1, "b": 2}, {"step": 1, "a": 3}, {"step": 2, "a": 4}]
    history = build_history(raw)
    assert history.records == [{"step": 1, "a": 3, "b": 2}, {"step": 2, "a": 4}]
    assert history.repeated == 0


def test_what_a_restart_takes_again_is_void_from_there_on() -> None:
    """Law: of steps taken twice only the latest try is left, also of steps between its records."""
    first = [{"step": step, "try": 1} for step in (1, 2, 3, 4, 5)]
    second = [{"step": step, "try": 2} for step in (3, 6)]
    history = build_history([*first, *second])
    expected = [(1, 1), (2, 1), (3, 2), (6, 2)]
    assert [(record["step"], record["try"]) for record in history.records] == expected
    assert history.repeated == 3


def test_a_run_may_start_again_many_times() -> None:
    assert steps([{"step": step, "a": 0} for step in (1, 2, 3, 1, 2, 2, 3, 4, 2, 3)]) == [1, 2, 3]


def test_only_numbers_are_kept_and_words_for_numbers_are_numbers() -> None:
    row = numbers({"a": 1, "b": "text", "c": {"_type": "image"}, "d": True, "e": "NaN", "f": None})
    assert row.keys() == {"a", "e"}
    assert math.isnan(row["e"])
    assert numbers({"a": "-Infinity"}) == {"a": -math.inf}
    large = {"a": 10**400, "b": -(10**400), "c": 7}
    assert numbers(large) == {"a": math.inf, "b": -math.inf, "c": 7}


def test_rows_of_other_programs_are_counted_by_wandb() -> None:
    """Law: without a step of its own in every row, W&B's row number is the step."""
    raw = [{"_step": 0, "loss": 1.0, "_runtime": 2}, {"_step": 7, "val": 2.0, "step": 3}]
    found = from_wandb(raw)
    assert [row["step"] for row in found] == [0, 7]
    assert found[0] == {"step": 0, "loss": 1.0, "elapsed_seconds": 2}


def test_a_step_within_an_epoch_is_not_taken_for_a_restart() -> None:
    pairs = [(epoch, step) for epoch in (0, 1, 2) for step in (0, 1, 2)]
    raw = [{"_step": i, "epoch": e, "step": s, "loss": 1} for i, (e, s) in enumerate(pairs)]
    assert len(build_history(from_wandb(raw)).records) == 9
    again = [
        {"_step": i, "epoch": s / 10, "step": s, "loss": 1} for i, s in enumerate((5, 6, 5, 6))
    ]
    assert steps(from_wandb(again)) == [5, 6]


# ------------------------------------------------------------------ run directories


def test_a_run_directory_is_read_as_a_whole(tmp_path: Path) -> None:
    config = {"model": {"kwargs": {"hidden": [4]}}, "logging": {"wandb": {"group": "study"}}}
    folder = write_run(tmp_path / "a", rows(accuracy=0.93), config=config, git_dirty=True)
    evaluation = {"confusion_matrix": [[3, 1], [0, 4]], "classes": ["cat", "dog"]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    run = read_run_directory(folder)
    assert (run.name, run.status, run.world_size, run.group) == ("a", "completed", 2, "study")
    assert run.git_commit == "01234567 (changed)"
    assert run.hardware == "2 x NVIDIA H100"
    assert run.config["model.kwargs.hidden"] == [4]
    assert (run.confusion, run.classes) == ([[3, 1], [0, 4]], ["cat", "dog"])
    assert run.final("eval/accuracy") == 0.93
    assert run.best("train/loss", lower=True) == (1 / 50, 50)
    assert run.best("train/loss", lower=False) == (1 / 10, 10)
    assert run.median("train/samples_per_second") == 500
    assert run.seconds == 5.0
    assert run.final("missing") is run.best("missing", lower=True) is run.median("missing") is None


def test_the_best_value_is_finite_and_the_first_of_equals(tmp_path: Path) -> None:
    values = [math.nan, 2.0, math.inf, 2.0, -math.inf]
    raw = [{"step": step, "a": value} for step, value in enumerate(values)]
    run = read_run_directory(write_run(tmp_path / "a", raw))
    assert run.best("a", lower=True) == run.best("a", lower=False) == (2.0, 1)


def test_every_truncation_of_the_records_can_be_read(tmp_path: Path) -> None:
    """Law: while a run is being written, every whole record is read, without a complaint."""
    folder = write_run(tmp_path / "a", rows(3))
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(ends[0], len(whole)):
        path.write_bytes(whole[:length])
        run = read_run_directory(folder)
        complete = sum(length >= end - 1 for end in ends)  # the last one may lack its newline
        assert len(run.records) == min(complete, 3), f"after {length} bytes"
        assert run.notes == []


def test_unreadable_lines_in_the_middle_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1, "a"\n[1]\n\n{"a": 1}\n{"step": NaN}\n' + path.read_text())
    run = read_run_directory(folder)
    assert len(run.records) == 5
    assert run.notes == [f"4 unreadable lines of {path} are left out"]


def test_a_bare_history_is_enough(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    for name in ("config.yaml", "environment.json", "summary.json"):
        (folder / name).unlink()
    run = read_run_directory(folder)
    assert (run.name, run.status, run.git_commit, run.hardware) == ("a", "unknown", None, None)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("environment.json", "nonsense"),
        ("config.yaml", "a: [1"),
        ("config.yaml", "text"),
        ("evaluation.json", '{"confusion_matrix": [[1, 2], [3]]}'),
        ("evaluation.json", '{"confusion_matrix": [["a"]]}'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"step"'),
    ],
)
def test_a_broken_or_empty_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_run_directory(folder)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    with pytest.raises(InputError, match=r"config\.yaml is not a readable"):
        read_run_directory(folder)


def test_mappings_are_taken_apart_and_empty_ones_stay() -> None:
    assert flatten_mapping({"a": {"b": 1, "c": {}}, "d.e": 2}) == {"a.b": 1, "a.c": {}, "d.e": 2}
    assert flatten_mapping({}) == {}


# ------------------------------------------------------------------ offline W&B


@pytest.mark.process
def test_an_offline_wandb_run_is_the_run_it_recorded(tmp_path: Path) -> None:
    """Law: what wandb was told comes back, wherever its blocks of 32 KiB end."""
    raw = rows(60, accuracy=0.91)
    config = {"optimizer": {"lr": 0.5}, "seed": 3, "git_commit": "abcdef0123", "world_size": 4}
    folder = write_offline(tmp_path, raw, config=config, name="mine", group="study")
    (path,) = find_wandb_files(folder)
    assert path.stat().st_size > 32768, "the file has more than one block"
    (run,) = read_offline([path])
    assert (run.name, run.group, run.world_size, run.git_commit) == ("mine", "study", 4, "abcdef01")
    assert run.config == {"optimizer.lr": 0.5, "seed": 3}
    assert run.status == "completed"
    assert run.hardware
    assert [r["train/loss"] for r in run.records] == [r["train/loss"] for r in raw[:-1]]
    assert (run.final("eval/accuracy"), run.seconds) == (0.91, 60.0)


@pytest.mark.process
def test_a_growing_offline_file_can_be_read_at_any_length(tmp_path: Path) -> None:
    """Law: a file that is still being written gives what is complete; a damaged one an error."""
    folder = write_offline(tmp_path, rows(60))
    (path,) = find_wandb_files(folder)
    whole, before = path.read_bytes(), 0
    for length in range(8000, len(whole), 997):
        path.write_bytes(whole[:length])
        (run,) = read_offline([path])
        assert before <= len(run.records) <= 60
        before = len(run.records)
        assert run.status == "running"
    path.write_bytes(whole + b"\0" * 500)  # space set aside for what comes
    assert len(read_offline([path])[0].records) == 60
    path.write_bytes(whole[:9000] + bytes([whole[9000] ^ 1]) + whole[9001:])
    with pytest.raises(InputError, match="damaged"):
        read_offline([path])
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="not a W&B file"):
        read_offline([path])


@pytest.mark.process
def test_what_restarts_leave_of_one_wandb_run_is_one_run(tmp_path: Path) -> None:
    """Law: the folders of one W&B id are one run, in the order of their time, each step once."""
    write_offline(tmp_path / "1", rows(5), run_id="same", name="r")
    write_offline(tmp_path / "2", rows(4, first_step=30, accuracy=0.7), run_id="same", name="r")
    first = next((tmp_path / "1/wandb").glob("offline-run-*"))
    second = next((tmp_path / "2/wandb").glob("offline-run-*"))
    first = first.rename(first.with_name("offline-run-20260101_000000-same"))
    second = second.rename(first.parent / "offline-run-20260101_000100-same")
    for order in ([first, second], [second, first], [first.parent]):
        (run,), _ = read_runs([str(path) for path in order])
        assert [record["step"] for record in run.records] == [10, 20, 30, 40, 50, 60, 70]
        assert run.points("eval/accuracy") == [(70, 0.7)]
        assert run.notes == ["2 records of steps taken again after a restart are left out"]


@pytest.mark.process
def test_an_empty_offline_run_says_so(tmp_path: Path) -> None:
    folder = write_offline(tmp_path, [{"note": "no number"}])
    with pytest.raises(InputError, match="empty"):
        read_offline(find_wandb_files(folder))


# ------------------------------------------------------------------ names


def test_names_of_all_kinds_are_read_each_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for name in ("a", "b", "c"):
        write_run(folder / name)
    (folder / "not a run").mkdir()
    write_run(folder / "empty", [])
    runs, notes = read_runs([str(folder / "b"), f"{folder}/*", str(folder / "b")])
    assert [run.name for run in runs] == ["b", "a", "c"]
    assert ["empty" in notes[0], "not a run" in notes[1]] == [True, True]
    (write_run(folder / "broken") / "summary.json").write_text("{")
    (folder / "report.html").touch()
    named = [str(folder / name) for name in ("empty", "a", "broken", "report.html", "not a run")]
    runs, notes = read_runs(named)
    assert [run.name for run in runs] == ["a"], "the others are a line"
    assert ["empty" in notes[0], "summary.json" in notes[1], "report.html" in notes[2]] == [
        True
    ] * 3
    write_run(folder / "sweep/trial_1")
    runs, _ = read_runs([str(folder)])
    assert [run.name for run in runs] == ["a", "b", "c", "trial_1"], "a folder means its runs"
    with pytest.raises(InputError, match="empty"):
        read_runs(named[:1])
    with pytest.raises(InputError, match="there is no run"):
        read_runs([*named, str(folder / "typo")])


def test_a_name_that_means_nothing_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("text")
    for name in ("folder", "file.txt", "missing", "no/*/match", "runs/typo"):
        with pytest.raises(InputError, match="run"):
            read_runs([str(tmp_path / name)])
    with pytest.raises(InputError, match="--filter-group"):
        read_runs([str(tmp_path / "runs/a")], group="g")


def test_a_missing_run_of_a_folder_that_exists_is_not_looked_for_at_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: a run is close to what names it, with its folder or without."""
    write_run(tmp_path / "runs/first")
    monkeypatch.chdir(tmp_path)
    for name, remedy in (("runs/fisrt", r"Did you mean 'runs/first'\?"), ("runs/typo", r"\)$")):
        with pytest.raises(InputError, match=f"there is no run at '{name}'.*{remedy}"):
            read_runs([name])
    for name in ("first", "runs/firs"):
        assert closest_run(name) == "Did you mean 'runs/first'?"
