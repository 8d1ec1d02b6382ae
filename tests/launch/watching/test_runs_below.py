"""Following runs: what was appended is read, what changed is told, what is broken is a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from launch.comparing.annotations import Annotation, read_annotation
from launch.comparing.followed_run import FollowedRun
from launch.watching import runs_below
from launch.watching.runs_below import RunsBelow
from tests.support.sample_runs import rows, write_run


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunsBelow:
    """runs/a with five records, runs/sweep/trial_0, runs/empty without any, and runs/broken."""
    monkeypatch.setattr(runs_below, "LOOK_SECONDS", 0.0)
    folder = tmp_path / "runs"
    write_run(folder / "a", status="running")
    write_run(folder / "sweep/trial_0", config={"optimizer": {"lr": 0.5}})
    write_run(folder / "empty", [])
    (write_run(folder / "broken") / "summary.json").write_text("{")
    return RunsBelow([folder, folder / "a"], metric=None, by=None, by_seed=True)


def append(folder: Path, *records: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def named(found: dict[str, Any]) -> list[str]:
    return [run["name"] for run in found["runs"]]


def test_what_changed_is_told_and_nothing_else(tmp_path: Path, watched: RunsBelow) -> None:
    """Law: a run that goes on is sent again; empty and broken ones are a line each."""
    first = watched.since(0)
    assert sorted(named(first)) == ["a", "trial_0"], "each once, and those of a sweep"
    assert sorted(line.split("/")[-1].split()[0] for line in first["page"]["left_out"]) == [
        "empty", "summary.json",
    ]  # fmt: skip
    assert watched.since(first["version"]) == {"version": first["version"]}
    append(tmp_path / "runs/a", {"step": 60, "train/loss": 0.25})
    append(tmp_path / "runs/empty", {"step": 1, "train/loss": 2.0})
    later = watched.since(first["version"])
    assert sorted(named(later)) == ["a", "empty"]
    [a] = [run for run in later["runs"] if run["name"] == "a"]
    assert a["metrics"]["train/loss"][0] == 0.25
    assert sum(a["curves"]["train/loss"][0]) == 60
    json.dumps(watched.since(0), allow_nan=False)


def test_only_what_was_appended_is_read(tmp_path: Path) -> None:
    """Law: and a file that a continued run put in its place is read from its beginning."""
    folder = write_run(tmp_path / "a", rows(1000))
    run = FollowedRun(folder)
    assert len(run.read().records) == 1000
    assert not run.has_changed()
    end = run.records.end
    append(folder, {"step": 10_010, "a": 1.0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10020, "a"')
    assert run.has_changed()
    assert run.read().final("a") == 1.0
    assert run.records.end - end == len('{"step": 10010, "a": 1.0}\n')
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(": 2.0}\n")
    assert run.read().final("a") == 2.0
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "new").write_text("".join(lines[:500]))
    (folder / "new").replace(folder / "metrics.jsonl")
    append(folder, *rows(600, first_step=5000)[:600])
    found = run.read()
    assert [record["step"] for record in found.records] == list(range(10, 11_001, 10))
    assert found.notes == []


def test_notes_are_kept_in_the_run_and_shown(tmp_path: Path, watched: RunsBelow) -> None:
    first = watched.since(0)
    source = str(tmp_path / "runs/a")
    watched.annotate(source, Annotation("good <b>", ("paper",)))
    assert read_annotation(tmp_path / "runs/a") == Annotation("good <b>", ("paper",))
    [run] = watched.since(first["version"])["runs"]
    assert (run["note"], run["tags"]) == ("good <b>", ["paper"])
    with pytest.raises(InputError, match="one that is shown"):
        watched.annotate(str(tmp_path), Annotation("outside"))
    (tmp_path / "runs/a/notes.json").write_text("[]")
    [run] = watched.since(0)["runs"][:1]
    assert any("notes.json" in line for line in run["notes"]), "no reason to leave the run out"


def test_no_file_of_a_run_ends_the_page(tmp_path: Path, watched: RunsBelow) -> None:
    """Law: what is in them may be anything that JSON, or Python, can hold."""
    folder = write_run(tmp_path / "runs/odd", world_size=float("nan"), gpus=5, cpu=[1])
    evaluation = {"confusion_matrix": [[float("nan"), 1], [-2, 1e400]], "classes": 7}
    evaluation["mistakes"] = [3, {"true": {"a": 1}, "predicted": 9, "confidence": "sure"}]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "a.png").mkdir()
    append(folder, {"step": 70, "a": float("inf"), "gradients/x/norm": float("nan")})
    found = watched.since(0)
    assert "odd" in named(found)
    assert len(json.dumps(found, allow_nan=False)) > 1000


def test_a_folder_without_runs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: runs may come later, and go."""
    monkeypatch.setattr(runs_below, "LOOK_SECONDS", 0.0)
    watched = RunsBelow([tmp_path], metric="val/loss", by=None, by_seed=True)
    assert watched.since(0) == {"version": 0}
    write_run(tmp_path / "a")
    found = watched.since(0)
    assert named(found) == ["a"]
    assert found["page"]["left_out"] == [
        "No run has recorded val/loss yet; the runs are ranked by another metric."
    ]
    (tmp_path / "a").rename(tmp_path / ".a")
    assert watched.since(found["version"])["page"]["groups"] == []
