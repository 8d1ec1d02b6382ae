"""What each rank does: looked at for a record, by the record's own reduction, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema_training import PrecisionConfig
from launch.comparing.comparison import compare
from launch.comparing.followed_run import read_run_directory
from launch.comparing.tables import results_table
from tests.support.processes import ROOT, launch
from tests.support.rig import CPU, make
from tests.support.runs import records, series, train_here
from tests.support.sample_records import training
from tests.support.sample_runs import rows, write_run
from trainer.engines.waiting import Waiting
from trainer.profiling.utilisation import build_utilisation, count_without_computing, peak_rate
from trainer.ranks.precision import build_precision
from trainer.ranks.runtime import Runtime
from trainer.records.console import SLOW, _pace
from trainer.records.pace import Pace

Arguments = Callable[..., list[str]]
EVERY = 5
SLEEP = 0.3


def pace(world_size: int = 1) -> tuple[Any, Pace]:
    rig = make(backward="autograd")
    runtime = Runtime(launcher="torchrun", world_size=world_size)
    return rig, Pace(rig.step.engine, runtime, recorded=False)


def test_only_the_row_before_a_record_is_looked_at(tmp_path: Path, idx_folder: Path) -> None:
    """A record every 5 steps, and one at the end: each has the numbers of one rank."""
    run = train_here(tmp_path, idx_folder, f"--logging.every_steps={EVERY}", "--train.max_steps=12")
    trained = [record for record in records(run) if "train/loss" in record]
    assert [record["step"] for record in trained] == [5, 10, 12]
    for record in trained:
        found = {key for key in record if key.startswith("system/")}
        assert found == {"system/step_seconds", "system/data_seconds", "system/peak_host_gib"}
        assert 0 <= record["system/data_seconds"] <= record["system/step_seconds"] < 10
        assert 0.05 < record["system/peak_host_gib"] < 100
    rig, watched = pace()
    batches = rig.loader.stream(0)
    for count in (3, 2):
        assert watched.unread() is None
        take = watched.timed(rig.step) if count == 2 else rig.step
        take([rig.plan.global_batch(0)], batches)
    row = watched.unread()
    assert row is not None
    assert row.numbers(CPU)[0] >= row.numbers(CPU)[1] > 0


def test_ranks_are_told_apart_by_their_own_time() -> None:
    _, watched = pace(world_size=3)
    ranks = [[0.2, 0.0, 2.0**31, 0.0], [0.5, 0.4, 2.0**30, 2.0**33], [0.1, 0.1, 0.0, 0.0]]
    assert watched.describe(ranks, 100.0) == {
        "system/step_seconds": 0.2,
        "system/fastest_step_seconds": 0.1,
        "system/slowest_step_seconds": 0.5,
        "system/slowest_rank": 1,
        "system/data_seconds": 0.4,
        "system/peak_host_gib": 2.0,
        "system/peak_device_gib": 8.0,
    }
    watched.utilisation = lambda rate: rate / 100
    assert watched.describe(ranks, 99.0)["system/mfu"] == 0.33  # of each of three
    watched.every_rank = True
    each = {k: v for k, v in watched.describe(ranks, 100.0).items() if "rank_1" in k}
    assert each == {
        "system/rank_1/step_seconds": 0.5,
        "system/rank_1/data_seconds": 0.4,
        "system/rank_1/peak_host_gib": 1.0,
        "system/rank_1/peak_device_gib": 8.0,
    }
    watched.engine.waits = ""  # as under FSDP, where all ranks wait alike
    assert (
        watched.describe(ranks, 100.0)
        .keys()
        .isdisjoint({"system/slowest_rank", "system/slowest_step_seconds"})
    )


@pytest.mark.parametrize("where", ["within the backward pass", "after the backward pass"])
def test_what_is_put_around_a_row_is_taken_off_again(where: Any) -> None:
    rig, _ = pace()
    engine = rig.step.engine
    engine.waits = where
    waiting = Waiting(engine, CPU)
    with waiting:
        assert {"reduce"} <= vars(engine).keys()
        rig.drive(2)
    assert "reduce" not in vars(engine)
    assert "backward" not in vars(engine.passes)
    assert len(waiting.spans) == 2
    assert 0 < waiting.seconds() < 1
    rig.drive()
    assert len(waiting.spans) == 2


def test_a_slow_rank_is_named_on_the_screen() -> None:
    """Law: from a certain factor on, since some rank is always the slowest."""
    record = training(10) | {"system/step_seconds": 0.04, "system/slowest_rank": 3}
    assert _pace(record | {"system/slowest_step_seconds": 0.04 * SLOW}) == ["500 samples/s"]
    said = _pace(record | {"system/slowest_step_seconds": 0.1})
    assert said == ["rank 3 slow: x2.5", "500 samples/s"]


def test_a_comparison_says_which_rank_is_slow(tmp_path: Path) -> None:
    slow = {"system/step_seconds": 0.1, "system/slowest_step_seconds": 0.3}
    told = [row | slow | {"system/slowest_rank": int(row["step"] > 10)} for row in rows()]
    runs = [write_run(tmp_path / "told", told), write_run(tmp_path / "untold")]
    table = results_table(compare([read_run_directory(run) for run in runs]))
    column = table.columns.index("slowest rank")
    found = {row[0].text: row[column].text for row in table.rows}
    assert found == {"told": "rank 1, x3.0", "untold": "-"}


@pytest.mark.process
@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_a_rank_that_is_slowed_is_named_within_one_record(
    small: Arguments, tmp_path: Path, reduction: str
) -> None:
    """By each record, in the file and on the screen, with the time that it takes itself."""
    model = {"hidden": [24, 16], "slow": SLEEP}
    finished = launch(
        "launch/train.py",
        *small("run", "--train.max_steps=6", f"--parallel.reduction={reduction}"),
        "--logging.every_steps=2",
        "--parallel.shards=2",
        "--model.name=faulty:Net",
        f"--model.kwargs={json.dumps(model)}",
        ranks=2,
        env={"PYTHONPATH": str(ROOT / "tests/programs")},
    )
    assert finished.status == 0, finished.output
    run = tmp_path / "run"
    assert series(run, "system/slowest_rank") == [1, 1, 1]
    for record in records(run)[:3]:
        assert record["system/slowest_step_seconds"] >= SLEEP
        assert record["system/step_seconds"] == record["system/fastest_step_seconds"]
    assert "rank 1 slow: x" in finished.stdout


def test_operations_are_counted_without_computing() -> None:
    """Law: neither the module nor a random generator notices, and tensors that hold nothing do."""
    rig, _ = pace()
    before = torch.get_rng_state()

    def forward(module: torch.nn.Module, size: int) -> torch.Tensor:
        out: torch.Tensor = module(torch.rand(size, 1, 3, 2)).sum()
        return out

    # two layers of 6 x 8 and 8 x 5; the gradient with respect to the inputs is not computed
    expected = 20 * (4 * (6 * 8) + 6 * (8 * 5))
    assert count_without_computing(rig.module, forward, [16, 4]) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in rig.module.parameters())

    def asks(module: torch.nn.Module, size: int) -> torch.Tensor:
        return forward(module, size) * forward(module, size).item()

    assert count_without_computing(rig.module, asks, [16]) is None


def test_utilisation_is_known_where_the_peak_is() -> None:
    card = "NVIDIA H100 80GB HBM3"
    assert peak_rate(card, torch.bfloat16, "highest") == 989.4e12
    assert peak_rate(card, None, "high") == 494.7e12
    assert peak_rate(card, None, "highest") == 67e12
    assert peak_rate("NVIDIA L4", torch.float16, "highest") == 121e12
    assert peak_rate("NVIDIA L40S", torch.float16, "highest") == 362e12
    assert peak_rate("NVIDIA H200 NVL", torch.bfloat16, "highest") == 835e12
    assert peak_rate("NVIDIA GeForce RTX 4090", torch.bfloat16, "highest") == 165.2e12
    relatives = ("NVIDIA GB200", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti")
    for card in (*relatives, "a card of tomorrow"):
        assert peak_rate(card, torch.bfloat16, "highest") is None
    rig, _ = pace()
    precision = build_precision(PrecisionConfig(), CPU)
    found = build_utilisation(rig.module, lambda *_: torch.zeros(()), [16], precision, CPU)
    assert found.of(1e9) is None
    found.peak, found.count = 1e6, lambda: 16_000
    assert found.of(samples_per_second=250.0) == 0.25
