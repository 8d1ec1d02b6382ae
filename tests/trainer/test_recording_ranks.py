"""Steps recorded on two real ranks: together, alike, with the bits of steps one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.processes import launch

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def finished(request: pytest.FixtureRequest) -> Any:
    """On CPUs; and on one GPU for both, over gloo: everything but NCCL."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    path = {"PYTHONPATH": str(Path.cwd())}
    return launch("tests/programs/recorded.py", request.param, ranks=2, env=path)


@pytest.fixture(scope="module")
def found(finished: Any) -> list[dict[str, Any]]:
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RECORDED ")]
    assert lines, finished.output[-4000:]
    ranks: list[dict[str, Any]] = json.loads(lines[0].removeprefix("RECORDED "))
    return ranks


def test_ranks_record_alike_and_with_the_bits_of_executed_steps(
    found: list[dict[str, Any]],
) -> None:
    """Law: for flat gradients whole and in parts, compressed, accumulated and skipped, for DDP and
    a network of ones own; the parts of a sum of two ranks move no bit."""
    first, second = (rank["runs"] for rank in found)
    for name, (recorded, executed) in first.items():
        assert recorded["all"] == executed["all"], name
        assert recorded["recordings"] == second[name][0]["recordings"] != []
        assert executed["recordings"] == []
        assert recorded["weights"] == second[name][0]["weights"], name
        assert second[name][0]["all"] == second[name][1]["all"], name
    assert first["fp16"][0]["skipped"] > 3
    assert first["whole"][0]["all"] == first["parts"][0]["all"]
    assert first["whole"][0]["all"] != first["parts in bf16"][0]["all"]


def test_ranks_agree_on_what_they_record(found: list[dict[str, Any]]) -> None:
    """How many steps in a row the slowest rank allows; and nothing, if one of them cannot."""
    (mine, most), (theirs, _) = (rank["pace"] for rank in found)
    assert mine == theirs <= most
    assert [rank["given up"] for rank in found] == [True, True]


def test_a_collective_that_is_in_no_graph_follows_each_replay(found: list[dict[str, Any]]) -> None:
    """NCCL's watchdog times nothing that is in one, and the flight record has nothing of it."""
    for in_replay, after in (rank["watched"] for rank in found):
        assert after == in_replay + 1 > 1


def test_a_rank_that_fails_in_a_replay_ends_all_with_its_name(finished: Any) -> None:
    assert finished.status != 0
    assert "an illegal memory access was encountered" in finished.output
    assert "rank 1" in finished.output or "rank      : 1" in finished.output
