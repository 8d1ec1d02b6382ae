"""The loader benchmark: its ratios on known numbers, and a quick run of the real thing."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from benchmarks.measure.loaders import SOURCES, WORKERS, Case, summarise
from tests.support.processes import launch


def test_cases_are_compared_with_no_workers_round_by_round() -> None:
    """Law: ratios are taken within a round and within one kind of memory."""
    cases = [
        Case(source="npy, mapped", workers=workers, pinned=pinned)
        for workers in (0, 2)
        for pinned in (True, False)
    ]
    found = summarise(cases, [[10.0, 40.0, 20.0], [1.0] * 3, [20.0, 40.0, 80.0], [5.0] * 3])
    assert found[0]["against_no_workers"]["median"] == 1.0
    assert found[2]["against_no_workers"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert found[3]["against_no_workers"]["median"] == 5.0
    assert found[2]["samples_per_second"] == {"median": 40, "min": 20, "max": 80}


@pytest.mark.process
def test_a_quick_run_measures_every_source_and_leaves_no_files(tmp_path: Path) -> None:
    output = tmp_path / "loaders.json"
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short: sockets lie there
        finished = launch(
            "launch/benchmark.py",
            *("--loader", "--quick", "--output", output),
            env={"TMPDIR": temporary},
        )
        assert list(Path(temporary).glob("benchmark-*")) == []
    assert finished.status == 0, finished.output
    content = json.loads(output.read_text())
    measured = [(case["source"], case["workers"]) for case in content["cases"]]
    assert measured == [(source, workers) for source in SOURCES for workers in WORKERS]
    assert all(case["samples_per_second"]["min"] > 0 for case in content["cases"])
    assert content["environment"]["packages"]["torch"]
    assert content["settings"]["rounds"] == 1
    assert all(source in finished.stdout for source in SOURCES)
