"""What a crash test compares can come out different."""

from __future__ import annotations

from pathlib import Path

from launch.crash_test.crash_rounds import same_samples
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
