"""What a crash test compares can come out different."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.crash_test.crash_rounds import same_records, same_samples
from launch.crash_test.kills import left_over
from launch.crash_test.sample_recorder import Deliveries, read_deliveries


def test_missing_repeated_and_other_samples_are_told_apart(tmp_path: Path) -> None:
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


def test_records_that_are_missing_doubled_or_other_are_told_apart() -> None:
    whole = [{"step": 1, "train/loss": 0.5}, {"step": 1, "eval/loss": 0.25}]
    assert same_records(whole, [dict(record) for record in whole], rounding=0.0)
    for found in (whole[:1], [*whole, whole[1]], whole[::-1], [whole[0], {"step": 1}]):
        assert not same_records(whole, found, rounding=0.1)
    near = [whole[0], {"step": 1, "eval/loss": 0.25 + 1e-9}]
    assert not same_records(whole, near, rounding=0.0)
    assert same_records(whole, near, rounding=1e-6)


@pytest.mark.process
def test_a_process_that_outlives_its_try_is_counted(tmp_path: Path) -> None:
    assert left_over(tmp_path, 0.0) == 0
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert left_over(tmp_path, 0.2) == 1
        process.kill()
        assert left_over(tmp_path, 10.0) == 0
