"""How long ranks wait for each other: longer where one of them may compile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema_execution import ParallelConfig
from data.loading.order import GlobalBatch, Plan
from data.samples import Batch
from tests.support.processes import launch
from tests.support.time_outs import record_timeouts
from trainer.backward.compile_watch import CompileWatch
from trainer.patient_steps import PatientSteps
from trainer.ranks.runtime import Runtime

SHORT, LONG = timedelta(seconds=7), timedelta(seconds=70)
PARALLEL = ParallelConfig(timeout_seconds=7, init_timeout_seconds=70)


class Steps:
    """Compiles in the steps that it is told."""

    max_steps = 3

    def __init__(self, watch: CompileWatch, compiles: Sequence[int]) -> None:
        self.watch, self.compiles, self.count = watch, compiles, 0

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        self.count += 1
        self.max_steps = self.count
        if self.count in self.compiles:
            self.watch._start(SimpleNamespace(callback_trigger=Trigger, compile_id="0/0"))


Trigger: Any = SimpleNamespace(name="LAZY_BACKWARD")


def test_a_step_that_may_compile_has_the_time_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: the first of a size on every rank, also where only others get a new share of it (64 and
    63 samples on 3 ranks are 21, 21, 22 and 21, 21, 21); and any in which this rank compiles."""
    asked = record_timeouts(monkeypatch)
    runtime = Runtime(launcher="torchrun", world_size=3, local_world_size=3, backend="gloo")
    plan = Plan(num_samples=191, global_batch_size=64, world_size=3, seed=0)
    inner = Steps(watch := CompileWatch(), compiles=[5])
    steps = PatientSteps(
        inner,
        runtime=runtime,
        parallel=PARALLEL,
        watch=watch,
    )
    assert steps.max_steps == 3
    inner.max_steps = 50  # as recordings do when they know their pace
    assert steps.max_steps == 50
    waited = []
    for number in range(6):  # 64, 64, 63, and so again
        asked.clear()
        steps([plan.global_batch(number)], iter([]))
        waited.append([*asked])
    both = [LONG, SHORT]
    assert waited == [both, [], both, [], both, []]
    assert steps.max_steps == 6


def test_a_start_that_is_shorter_than_training_shortens_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = record_timeouts(monkeypatch)
    runtime = Runtime(launcher="torchrun", world_size=2, local_world_size=2, backend="gloo")
    hasty = ParallelConfig(timeout_seconds=70, init_timeout_seconds=7)
    PatientSteps(
        Steps(watch := CompileWatch(), []), runtime=runtime, parallel=hasty, watch=watch
    ).be_patient()
    assert asked == [LONG]


@pytest.mark.process
@pytest.mark.slow
def test_groups_of_some_ranks_wait_as_long_as_that_of_all() -> None:
    """Law: long where one may compile, and short afterwards. Rank 3 is late, with which under HSDP
    rank 1 has the same part of another copy, and rank 2 the other part of its copy."""
    finished = launch("tests/programs/late_rank.py", ranks=4, env={"PYTHONPATH": "."})
    lines = [line for line in finished.stdout.splitlines() if line.startswith("RANK ")]
    found = [json.loads(line[len("RANK 0 ") :]) for line in sorted(lines)]
    assert len(found) == 4, finished.output[-4000:]
    assert [rank["start"] for rank in found] == [True, True, True, True]
    assert [rank["training"] for rank in found[:3]] == [True, True, False]
