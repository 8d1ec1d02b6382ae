"""What the search for NaN costs: arithmetic on known numbers, and the real thing once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure.finite_cost import summarise
from tests.support.processes import launch


def test_epochs_with_a_look_are_compared_with_those_without() -> None:
    """Law: the first pair warms up; two looks of 1 ms after each even epoch of 1 s are 0.2 %."""
    began = {1: 0.0, 2: 5.0, 3: 6.1, 4: 7.1, 5: 8.3, 6: 9.3, 7: 10.2}
    found = summarise(began, [0.001] * 6)
    assert found["pairs"] == 2
    assert found["ratio_median"] == pytest.approx((1.1 / 1.0 + 1.2 / 1.0) / 2, abs=1e-4)
    assert found["checks_per_epoch"] == 2
    assert found["share_of_an_epoch"] == pytest.approx(0.002, rel=0.1)


@pytest.mark.slow
@pytest.mark.process
def test_the_command_measures_a_run(tmp_path: Path) -> None:
    output = tmp_path / "finite.json"
    finished = launch("launch/benchmark.py", "--finite", "--quick", f"--output={output}")
    assert finished.status == 0, finished.output[-4000:]
    found = json.loads(output.read_text())
    assert found["pairs"] == 4
    assert 0 < found["share_of_an_epoch"] < 0.5
