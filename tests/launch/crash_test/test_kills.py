"""The kills that a crash test deals: every kind comes, and those at a call come there."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from launch.crash_test import killed_train
from launch.crash_test.kills import KILLS, LAUNCHER, WORKER, Pack
from launch.crash_test.scenarios import SCENARIOS
from tests.support.processes import ROOT, python_command, start, wait


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_kills_hold_every_kind(seed: int) -> None:
    """Law: whatever the seed, as rounds of ten over all scenarios deal them."""
    pack = Pack(random.Random(seed))
    dealt = []
    for number in range(100):
        scenario = SCENARIOS[number // 10 % len(SCENARIOS)]
        launcher = min(scenario.ranks) > 1
        kill = pack.draw(launcher=launcher, workers=scenario.workers)
        assert launcher or kill.kind != LAUNCHER
        assert scenario.workers or kill.kind != WORKER
        dealt.append(kill)
    assert set(dealt) == set(KILLS)


def test_a_kill_that_could_not_be_dealt_comes_again() -> None:
    pack = Pack(random.Random(0))
    kill = pack.draw(launcher=True, workers=True)
    pack.put_back(kill)
    assert pack.draw(launcher=True, workers=True) is kill


@pytest.mark.process
def test_a_run_kills_itself_at_the_call_that_it_is_told(tmp_path: Path) -> None:
    """Law: that one of its start; what it does is written down beforehand."""
    env = {"PYTHONPATH": str(ROOT), killed_train.VARIABLE: "0 start 7"}
    script = "launch/crash_test/killed_train.py"
    finished = wait(start(python_command(script, "--print_config"), cwd=tmp_path, env=env))
    assert finished.status == -signal.SIGKILL, finished.output
    place = json.loads((tmp_path / killed_train.KILLED).read_text())
    assert (place["where"], place["call"]) == ("start", 7)
    os.remove(tmp_path / killed_train.KILLED)
    other = wait(
        start(
            python_command(script, "--print_config"),
            cwd=tmp_path,
            env=env | {killed_train.VARIABLE: "1 start 7"},
        )
    )
    assert other.status == 0, other.output
    assert not list(tmp_path.iterdir())


def test_the_committed_result_holds_every_kind_and_no_difference() -> None:
    """Law: and the guide that points to it says how many kills there were."""
    result = json.loads((ROOT / "benchmarks/results/torture.json").read_text())
    assert result["different"] == 0
    assert set(result["kinds"]) == {kill.label for kill in KILLS}
    assert result["stopped_evaluations"] > 0
    assert not any(item["left_over"] for item in result["rounds"])
    guide = (ROOT / "docs/guarantees.md").read_text()
    assert f"{result['kills']} kills of every kind were survived" in guide
