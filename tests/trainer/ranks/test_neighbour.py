"""Two ranks of one machine that add what lies in each other's memory."""

from __future__ import annotations

import platform

import pytest

from tests.support.processes import ROOT, Finished, launch, marked
from trainer.ranks.neighbour import meet_neighbour
from trainer.ranks.runtime import Runtime

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="only on x86"),
]


def part(fate: str, *, ranks: int = 2) -> Finished:
    env = {"PYTHONPATH": str(ROOT)}
    return launch("tests/programs/neighbours.py", fate, ranks=ranks, env=env)


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("none", []),
        ("leaves", ["connection closed by rank 1, which has left"]),
        ("killed", ["connection closed by rank 1, which has left"]),
        ("silent", ["timed out after 1 s of waiting for rank 1"]),
        ("elsewhere", ["rank 1 sums 2 numbers, and this rank 3: they are not at the same place"]),
    ],
)
def test_sums_are_those_of_gloo_and_nobody_is_waited_for_in_vain(
    fate: str, said: list[str]
) -> None:
    """Law: the same bits, for tensors of every size, whoever is late and by how much."""
    finished = part(fate)
    expected = ["EQUAL true", *(f'SAID "{line}"' for line in said)]
    assert [line for line in finished.stdout.splitlines() if line[0] in "ES"] == expected, (
        finished.output
    )


@pytest.mark.slow
def test_three_ranks_have_no_neighbour() -> None:
    """Their sums would have other bits than gloo's."""
    assert marked(part("alone", ranks=3), "FOUND ") == [[False] * 3]


def test_one_rank_and_ranks_of_two_machines_have_none() -> None:
    assert meet_neighbour(Runtime(launcher="python"), 10) is None
    apart = Runtime(launcher="torchrun", world_size=2, local_world_size=1, backend="gloo")
    assert meet_neighbour(apart, 10) is None
