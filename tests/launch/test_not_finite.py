"""A NaN anywhere in a run ends it; nothing of it is saved or chosen; a restart comes out well.

Gradients, weights, buffers, optimizer state and averages; the first, a middle and the last of nine
steps; each precision, engine and number of ranks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.odd_runs import ODD, arguments, run
from tests.support.planting import PLACES, planted
from tests.support.processes import ROOT, begin, marked, torchrun_command, wait
from tests.support.runs import assert_same_bits, comparable, records
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.ranks.failures import Diverged

FIRST, MIDDLE, LAST = STEPS = 1, 5, 9
WAYS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("--precision.dtype=bf16", "--optimizer.name=sgd"),
    "fp16": ("--precision.dtype=fp16", "--precision.init_scale=1024"),
    "exact": ("--parallel.reduction=exact", "--parallel.shards=2"),
    "accelerate": ("--parallel.engine=accelerate",),
    "sharded": ("--parallel.strategy=fsdp",),
    "sharded fp16": ("--parallel.strategy=fsdp", "--precision.dtype=fp16"),
    "written out": (),
}
ALONE = [way for way in WAYS if "sharded" not in way]
ON_THREE = ["fp32", "fp16", "accelerate", "sharded"]


def options(way: str, name: str) -> tuple[str, ...]:
    """The model of a way to train, and its options."""
    return (
        f"{ODD}:stacked" if way == "written out" else f"{ODD}:InPlace",
        f"--name={name}",
        "--train.ema_decay=0.9",
        "--checkpoint.every_steps=2",
        "--parallel.threads=1",
        *WAYS[way],
    )


def combinations(ways: list[str]) -> list[tuple[str, str, int]]:
    """Every way with every place, each place at each step with some way."""
    steps = itertools.cycle(STEPS)
    return [
        (way, place, next(steps))
        for way in ways
        for place in PLACES
        if (way, place) != ("written out", "buffer")  # it has none
    ]


def attempt(folder: Path, way: str, place: str, at: int) -> str:
    """How a run fails in this process."""
    with planted(place, at):
        try:
            run(folder, *options(way, "run"))
        except Diverged as error:
            return str(error)
    return ""


def assert_nothing_bad_is_left(folder: Path, message: str, place: str, at: int) -> None:
    """The step and what holds the NaN are named; what is on disk and what was chosen is finite."""
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    found = re.search(r"(?:after step|loss of step) (\d+) ", message)
    assert found, message
    assert at <= int(found[1]) <= at + 2, "a checkpoint is due every other step"
    assert re.search(r"the (weight|buffer|average of|optimizer's \w+ of) ", message), message
    kept = list((folder / "checkpoints").glob("step_*"))
    assert all(int(path.name.removeprefix("step_")) < at for path in kept)
    for path in kept:
        weights, trainer = load_checkpoint(path)
        held: list[Any] = [*weights.values(), *(trainer["ema"] or {}).values()]
        held += [v for state in trainer["optimizer"]["state"].values() for v in state.values()]
        assert all(v.isfinite().all() for v in held if isinstance(v, torch.Tensor))
    evaluated = [r["eval/loss"] for r in records(folder) if "eval/loss" in r]
    assert all(map(math.isfinite, evaluated))


def assert_as_undisturbed(folder: Path, whole: Path) -> None:
    assert_same_bits(folder, whole)
    assert comparable(folder) == comparable(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of a way to train that is left alone."""
    known: dict[str, Path] = {}

    def trained(way: str) -> Path:
        if way not in known:
            known[way] = run(tmp_path_factory.mktemp("whole"), *options(way, "run"))
        return known[way]

    return trained


EACH = [("fp32", place, at) for place in PLACES for at in STEPS]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("way", "place", "at"), [*EACH, *combinations([way for way in ALONE if way != "fp32"])]
)
def test_a_nan_ends_a_run_and_a_restart_ends_as_one_left_alone(
    way: str, place: str, at: int, whole: Any, tmp_path: Path
) -> None:
    message = attempt(tmp_path, way, place, at)
    if way == "fp16" and place == "gradient":
        assert message == "", "fp16 skips that step"
        assert json.loads((tmp_path / "run/summary.json").read_text())["skipped_steps"] == 1
        return
    assert_nothing_bad_is_left(tmp_path / "run", message, place, at)
    run(tmp_path, *options(way, "run"))
    assert_as_undisturbed(tmp_path / "run", whole(way))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("ranks", "every"),
    [
        (2, 3),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
    ],
)
def test_ranks_end_together_and_a_restart_ends_as_one_left_alone(
    ranks: int, every: int, tmp_path: Path
) -> None:
    """Law: a NaN on one rank is seen by all. All runs, and restarts, on the same ranks."""
    ways = list(WAYS) if ranks == 2 else ON_THREE
    tried = combinations(ways)[::every]

    def command(way: str, name: str) -> list[str]:
        return arguments(tmp_path, *options(way, name))

    runs: list[list[Any]] = [[command(way, way), None, 0] for way in ways]
    for number, (way, place, at) in enumerate(tried):
        runs += [[command(way, f"{number}"), place, at], [command(way, f"{number}"), None, 0]]
    env = {"PYTHONPATH": str(ROOT)}
    command_line = torchrun_command(ranks, "tests/programs/spoilt.py", json.dumps(runs))
    finished = wait(begin(command_line, env=env), timeout=900)
    (found,) = marked(finished, "FAILURES ")
    assert not any(found[: len(ways)])
    failed, again = found[len(ways) :: 2], found[len(ways) + 1 :: 2]
    assert not any(again)
    for number, ((way, place, at), message) in enumerate(zip(tried, failed, strict=True)):
        if place == "gradient" and "fp16" in way:
            assert message == "", (way, place, at)
            continue
        if message or place != "buffer":  # those of rank 0 are copied to all before a step
            assert_nothing_bad_is_left(tmp_path / f"{number} failed", message, place, at)
        assert_as_undisturbed(tmp_path / f"{number}", tmp_path / way)
