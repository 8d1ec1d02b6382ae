"""Real ranks, one of them at fault: the fault is found and the rank is named."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import launch

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    finished = launch("tests/programs/ranks.py", ranks=2, env={"PYTHONPATH": "."})
    assert finished.status == 0, finished.output
    (line,) = [line for line in finished.stdout.splitlines() if line.startswith("RANKS ")]
    result: dict[str, list[str]] = json.loads(line.removeprefix("RANKS "))
    return result


@pytest.mark.parametrize(
    ("fault", "level", "words"),
    [
        ("good link", "ok", "exact on all ranks"),
        ("bad link", "problem", "wrong sums on rank 1 (int64, float32)"),
        ("slow", "warning", "slow: rank 1 ("),
        ("different", "problem", "RANK 1: rank 1 has x, the others y"),
        ("closed port", "problem", "cannot be reached by rank 1"),
        ("wrong interface", "problem", "nothing0"),
    ],
)
def test_a_rank_at_fault(found: dict[str, list[str]], fault: str, level: str, words: str) -> None:
    assert found[fault][0] == level
    assert words in found[fault][1]
