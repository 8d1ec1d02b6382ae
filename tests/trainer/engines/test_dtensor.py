"""The state of sharded weights on two ranks: gathered as one rank has it, and loaded again."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import launch

KEYS = ["count", "no.attribute", "first.weight", "first.bias", "last.weight", "last.bias"]


@pytest.mark.process
def test_the_state_of_two_ranks_is_that_of_one_and_can_be_loaded_again() -> None:
    """Law: rank 0 gathers the bits of an unsharded run under its keys; asking changes nothing.

    Sizes that ranks cannot divide evenly, and a key that is no attribute of the module, included.
    """
    finished = launch("tests/programs/sharded_state.py", ranks=2, env={"PYTHONPATH": "."})
    assert finished.status == 0, finished.output[-4000:]
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RANK ")]
    first, second = (json.loads(line[len("RANK 0 ") :]) for line in sorted(lines))
    assert first == {
        "state before the first step": {},
        "keys": KEYS,
        "gathered is that of one rank": True,
        "what was loaded is untouched": True,
        "loaded is what was saved": True,
    }
    assert second["keys"] == KEYS[:2], "rank 1 holds nothing that was sharded"
    assert second["what was loaded is untouched"]
