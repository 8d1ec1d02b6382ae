"""What the measurement of compiled starts makes of what runs recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import compile_starts
from benchmarks.measure.compile_starts import WAYS, measure_starts, read_start, show_starts
from benchmarks.measure.processes import Finished


def leave_run(folder: Path, *, first: float, compiling: float) -> None:
    """The files of a run whose first step ended at a time."""
    folder.mkdir(parents=True)
    records = [{"step": 0, "eval/loss": 1.0}, {"step": 1, "train/loss": 1.0, "time": first}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    counts = {"compile/graph_breaks": 0, "compile/recompilations": 2}
    (folder / "summary.json").write_text(json.dumps({"compile/seconds": compiling} | counts))


def test_a_start_is_read_from_its_records(tmp_path: Path) -> None:
    leave_run(tmp_path / "run", first=107.5, compiling=6.25)
    assert read_start(tmp_path / "run", started_at=100.0) == {
        "first_step_seconds": 7.5,
        "compile_seconds": 6.25,
        "compile_graph_breaks": 0,
        "compile_recompilations": 2,
    }


def test_cold_and_warm_starts_share_a_folder_of_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the cold one comes first, in an empty folder; every way has its own."""
    commands: list[dict[str, str]] = []

    def run(command: list[str], **_: Any) -> Finished:
        options = dict(word[2:].split("=", 1) for word in command if word.startswith("--"))
        folder = Path(options["output_dir"])
        assert folder.is_dir()
        assert len(list(folder.iterdir())) == (options["name"] == "warm")
        seconds = 8.0 if options["name"] == "cold" else 2.0
        leave_run(folder / options["name"], first=1000.0 + seconds, compiling=seconds / 2)
        commands.append(options)
        return Finished(stdout="", started_at=1000.0, peak_memory_bytes=0)

    monkeypatch.setattr(compile_starts, "run", run)
    found = measure_starts(rounds=2, threads=1, device="cpu", quick=True)
    assert [item["way"] for item in found] == [way.name for way in WAYS]
    assert [options["name"] for options in commands] == ["cold", "warm"] * 4
    assert len({options["output_dir"] for options in commands}) == 4
    assert {options["compile.regional"] for options in commands} == {"true", "false"}
    for item in found:
        times = item["first_step_seconds"]
        assert (times["cold"]["median"], times["warm"]["median"]) == (8.0, 2.0)
        assert (
            times["warm_over_cold"]["median"] == item["compile_seconds"]["warm_over_cold"]["median"]
        )
        assert times["warm_over_cold"]["median"] == 0.25
    show_starts(found)
    assert "block by block" in capsys.readouterr().out
