"""Steps in a row are steps one by one, however a run is cut, executed or recorded."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.cuda_graphs.recorded_steps
from configs.errors import InputError
from configs.schema_training import ScheduleConfig, TrainConfig
from tests.support.recording import NOISY, Again, drive, everything, rows
from tests.support.rig import TOO_LARGE, assert_same_bits, make
from trainer.backward.explicit.side_streams import Branches
from trainer.checkpointer import Checkpointer
from trainer.checkpoints.state import Progress
from trainer.cuda_graphs.recorded_steps import LENGTHS, WARMUP_STEPS
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.due import End
from trainer.log import RunLog
from trainer.loop import upcoming
from trainer.ranks.runtime import Runtime
from trainer.records.gradient_statistics import GradientLog

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
T = TypeVar("T")
ALONE = Runtime(launcher="python")
RUNS: dict[str, dict[str, Any]] = {
    "written out": {**NOISY},
    "averaged and clipped": {**NOISY, "decay": 0.9, "clip": 0.1, "warmup": 3, "smoothing": 0.1},
    "sgd": {**NOISY, "optimizer": "sgd"},
    "autograd": {**NOISY, "backward": "autograd", "decay": 0.9},
    "accumulated": {**NOISY, "micro": 5},
    "batch norm": {**NOISY, "batch_norm": True, "micro": 8, "clip": 0.1},
    "bf16": {**NOISY, "dtype": "bf16"},
    "fp16": {**NOISY, "dtype": "fp16", "decay": 0.9, "init_scale": 1e9},
    "autograd in fp16": {
        **NOISY,
        "dtype": "fp16",
        "decay": 0.9,
        "init_scale": 1e9,
        "backward": "autograd",
    },
    "fp16, accumulated": {**NOISY, "dtype": "fp16", "micro": 5, "clip": 0.1, "init_scale": 1e9},
}
CUTS = ([1] * 24, [2, 3, 2, 1, 6, 7, 1, 2], [7, 1, 2, 6, 8])
"""Global batches of 37 samples in batches of 16: every third one is short."""


def trained(name: str, cuts: list[int], *, how: str = "executed", **more: Any) -> list[Any]:
    rig = make(**RUNS[name], **more)
    torch.manual_seed(7)
    recorder = Again(rig) if how == "recorded" else None
    drive(rig, rows(rig, recorder=recorder, most=50), cuts)
    if recorder is not None:
        assert recorder.replayed > 0
    return everything(rig)


@pytest.mark.parametrize("name", RUNS)
def test_how_a_run_is_cut_changes_no_bits(name: str) -> None:
    """Law: weights, average, optimizer, scaler, metrics, rate, norm and generator; with fp16 the
    first steps overflow and are skipped."""
    first, *others = (trained(name, cuts) for cuts in CUTS)
    for other in others:
        assert_same_bits(other, first)
    if "fp16" in name:
        assert first[4]["skipped_steps"] > 3


@pytest.mark.parametrize("name", RUNS)
def test_recorded_steps_have_the_bits_of_executed_ones(name: str) -> None:
    """Law. Hyperparameters lie on the device then, whose float32 numbers the host's rates are
    rounded to."""
    recorded = trained(name, CUTS[1], how="recorded")
    assert_same_bits(trained(name, CUTS[2], how="recorded"), recorded)


@pytest.mark.parametrize("name", [name for name in RUNS if "fp16" not in name])
def test_a_stretch_is_what_the_step_does(name: str) -> None:
    """Law: with fp16 up to the rounding of the rates, see below."""
    rig = make(**RUNS[name])
    torch.manual_seed(7)
    rig.drive(24)
    assert_same_bits(trained(name, CUTS[2]), everything(rig))


@pytest.mark.parametrize("how", ["stream", "executed", "recorded"])
def test_fp16_decides_on_the_device_as_it_does_on_the_host(how: str) -> None:
    """Skipped steps leave rate, average and step counter to the next one, in mid-row too."""
    found = []
    for steps in (False, True):
        rig = make(**{**RUNS["fp16"], "warmup": 6, "growth_interval": 3, "init_scale": 1e7})
        torch.manual_seed(7)
        if steps:
            taken = rows(rig, recorder=Again(rig) if how == "recorded" else None)
        if steps and how == "stream":
            rig.step.loader = None
        for _ in range(3):
            if not steps:
                rig.drive(8)
            elif how == "stream":
                batches = rig.loader.stream(rig.progress.global_batches)
                for count in (2, 1, 2, 1, 2):
                    first = rig.progress.global_batches
                    taken([rig.plan.global_batch(first + index) for index in range(count)], batches)
            else:
                drive(rig, taken, [8])
            rig.set_scale(TOO_LARGE)
        found.append(rig)
    expected, mine = found
    assert expected.progress == mine.progress
    assert 3 < mine.progress.skipped_steps < 24
    assert mine.step.learning_rate == expected.step.learning_rate
    assert_same_bits(*(rig.meter.state_dict()["windows"] for rig in (mine, expected)))
    for name, value in expected.weights().items():
        torch.testing.assert_close(mine.weights()[name], value, rtol=1e-5, atol=1e-7)
    assert mine.ema is not None
    assert expected.ema is not None
    for name, value in expected.ema.module.state_dict().items():
        torch.testing.assert_close(mine.ema.module.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_a_size_is_recorded_after_its_warm_up_in_lengths_that_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.cuda_graphs.recorded_steps, "MAX_SECONDS", 1e9)
    rig = make(num_samples=16 * 80 + 5, **NOISY)
    recorder = Again(rig)
    steps = rows(rig, most=50, recorder=recorder)
    assert steps.max_steps == 1, "nothing is known of its pace"
    drive(rig, steps, [1] * (WARMUP_STEPS + 1))
    assert recorder.recorded == [1]
    assert steps.max_steps == 50
    drive(rig, steps, [76])
    assert recorder.recorded == [1, 50, 12]
    assert recorder.replayed == 1 + 1 + 2 + 2
    drive(rig, steps, [1])
    assert recorder.recorded == [1, 50, 12], "the short one is not warm yet"
    assert sorted(LENGTHS, reverse=True) == list(LENGTHS)
    assert LENGTHS[-1] == 1


def test_slow_steps_are_not_taken_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to stop is heard between rows."""
    monkeypatch.setattr(trainer.cuda_graphs.recorded_steps, "MAX_SECONDS", 0.0)
    rig = make(num_samples=16 * 40, **NOISY)
    steps = rows(rig, most=50, recorder=Again(rig))
    drive(rig, steps, [1] * 9)
    assert steps.max_steps == 1


def test_batches_too_large_for_a_row_are_recorded_one_by_one() -> None:
    rig = make(num_samples=16 * 40, **NOISY)
    recorder = Again(rig)
    steps = rows(rig, most=1, recorder=recorder)
    drive(rig, steps, [1] * 9)
    assert (recorder.recorded, recorder.replayed, steps.max_steps) == ([1], 9 - WARMUP_STEPS, 1)


def test_what_cannot_be_recorded_is_said_in_one_message() -> None:
    class Fails(Again):
        def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    rig = make(**NOISY)
    with pytest.raises(InputError, match=r"--compile.capture false.*not permitted"):
        drive(rig, rows(rig, recorder=Fails(rig)), [1] * 8)


@settings(max_examples=200, deadline=None)
@given(
    most=st.integers(1, 30),
    logging=st.integers(1, 12),
    drift=st.none() | st.integers(1, 12),
    saving=st.none() | st.integers(1, 12),
    gradients=st.none() | st.integers(1, 12),
    max_steps=st.none() | st.integers(1, 60),
    skipped=st.sets(st.integers(0, 80)),
)
def test_nothing_that_is_due_is_passed_over(
    most: int,
    logging: int,
    drift: int | None,
    saving: int | None,
    gradients: int | None,
    max_steps: int | None,
    skipped: set[int],
) -> None:
    """Law: every step at which something is due ends a row, whatever fp16 skips."""
    plan, total = make().plan, 60
    progress = Progress()
    seen: Any = SimpleNamespace(
        config=SimpleNamespace(
            train=TrainConfig(max_steps=max_steps),
            parallel=SimpleNamespace(drift_every_steps=drift),
            logging=SimpleNamespace(every_steps=logging),
            every_steps=saving,
        ),
        state=SimpleNamespace(progress=progress),
        gradients=GradientLog(torch.nn.Linear(1, 1), gradients),
    )
    run: Any = SimpleNamespace(
        config=seen.config,
        state=seen.state,
        plan=plan,
        steps=SimpleNamespace(max_steps=most),
        end=End(progress, seen.config.train, total),
        log=SimpleNamespace(steps_until_due=lambda: RunLog.steps_until_due(seen)),
        checkpointer=SimpleNamespace(steps_until_due=lambda: Checkpointer.steps_until_due(seen)),
    )
    passed, ends, watched = set(), set(), set()
    while not run.end.reached:
        global_batches = upcoming(run)
        assert 1 <= len(global_batches) <= most
        assert len({global_batch.size for global_batch in global_batches}) == 1
        assert not any(global_batch.ends_epoch for global_batch in global_batches[:-1])
        before = progress.step
        for global_batch in global_batches:
            assert global_batch.number == progress.global_batches
            progress.global_batches += 1
            progress.step += global_batch.number not in skipped
            passed.add(progress.step)
        ends.add(progress.step)
        if len(global_batches) == 1 and progress.step > before:
            watched.add(progress.step)
    assert progress.step <= (max_steps or total)
    for every in (logging, drift, saving):
        assert {step for step in passed if every and step and step % every == 0} <= ends
    if gradients:
        assert {step for step in passed if step and step % gradients == 0} <= watched


def test_branches_of_a_cpu_happen_in_their_turn() -> None:
    branches = Branches(CPU, 3)
    seen = []
    for index in range(3):
        with branches.beside(index):
            seen.append(index)
    branches.join()
    assert seen == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("name", RUNS)
def test_graphs_have_the_bits_of_the_steps_they_record(
    gpu: torch.device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(trainer.cuda_graphs.recorded_steps, "WARMUP_STEPS", 1 << 30)
        rig = make(**RUNS[name], device=gpu, schedule=ScheduleConfig(name="cosine"))
        torch.manual_seed(7)
        drive(rig, rows(rig, most=50, recorder=GraphRecorder(gpu)), [1] * 12 + [6, 6, 12])
        found.append([*everything(rig), torch.cuda.get_rng_state(gpu)])
    assert_same_bits(found[0], found[1])


@pytest.mark.gpu
def test_the_graph_of_a_run_has_the_bits_of_plain_steps(gpu: torch.device) -> None:
    """So that a checkpoint says the same to whoever continues it."""
    rig = make(**RUNS["written out"], device=gpu)
    torch.manual_seed(7)
    rig.drive(24)
    plain = everything(rig)
    rig = make(**RUNS["written out"], device=gpu)
    torch.manual_seed(7)
    drive(rig, rows(rig, most=50, recorder=GraphRecorder(gpu)), [1] * 12 + [12])
    assert_same_bits(everything(rig), plain)
