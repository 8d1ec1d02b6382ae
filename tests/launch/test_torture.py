"""Random kills of random ranks at random moments; the command judges itself by its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.crash_test.sample_recorder import Deliveries, read_deliveries
from launch.torture import same_samples
from tests.support.processes import python_command, start, wait


@pytest.mark.process
@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    command = python_command(
        "launch/torture.py", "--kills=20", f"--output={tmp_path / 'result.json'}"
    )
    finished = wait(start(command), timeout=900)
    assert finished.status == 0, finished.output[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kills"] == 20
    assert result["different"] == 0
    assert len({item["scenario"] for item in result["rounds"]}) >= 2


def test_the_witness_tells_missing_repeated_and_other_samples(tmp_path: Path) -> None:
    """The comparison can fail: it sees every way a delivery can be wrong."""
    for name, lines in {
        "try-000/delivered.0.jsonl": "[0, [1, 2]]\n[1, [5]]\n",
        "try-000/delivered.1.jsonl": "[0, [3]]\n[1, [6]]\n[2, [7",
        "try-001/delivered.0.jsonl": "[1, [5, 6]]\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(lines)
    found = read_deliveries(tmp_path)
    assert found.last == {0: [1, 2, 3], 1: [5, 6]}
    good = Deliveries([(0, {1, 2, 3}), (1, {5, 6})], {0: [1, 2, 3], 1: [5, 6]})
    assert same_samples(good, found)
    for last in ({0: [1, 2], 1: [5, 6]}, {0: [1, 2, 3, 3], 1: [5, 6]}, {0: [1, 2, 3]}):
        assert not same_samples(good, Deliveries([], last))
    assert not same_samples(good, Deliveries([(1, {5, 9})], good.last))
