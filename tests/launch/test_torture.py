"""Random kills of random ranks at random moments; the command judges itself by its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
