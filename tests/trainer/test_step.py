"""One optimizer step: the right gradient, in the right order, or nothing at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
import torch.nn.functional as F

import trainer.step
from configs.schema_training import OptimizerConfig
from tests.support.rig import (
    CPU,
    MODERATE,
    TOO_LARGE,
    assert_close,
    assert_same_bits,
    make,
    plain_gradient,
)
from trainer.optim.average import EMA
from trainer.optim.optimizers import build_optimizer
from trainer.ranks.failures import Diverged
from trainer.ranks.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("micro", [None, 1, 2, 3, 4, 8, 15, 16])
@pytest.mark.parametrize("num_samples", [37, 35, 33])
def test_the_gradient_is_that_of_one_concatenated_batch_in_full_and_short_global_batches(
    num_samples: int, micro: int | None, reduction: Literal["fast", "exact"], smoothing: float
) -> None:
    """The third global batch of an epoch has 5, 3 or 1 samples, the fourth global batch is the next
    epoch."""
    rig = make(num_samples=num_samples, micro=micro, reduction=reduction, smoothing=smoothing)
    for index in range(4):
        _, expected = plain_gradient(rig, index, smoothing)
        rig.drive()
        assert_close(rig.gradient(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("micro", [None, 3])
def test_the_gradient_on_the_gpu_is_that_of_one_concatenated_batch(
    gpu: torch.device, micro: int | None, reduction: Literal["fast", "exact"]
) -> None:
    rig = make(micro=micro, reduction=reduction, device=gpu)
    for index in range(3):
        _, expected = plain_gradient(rig, index)
        rig.drive()
        assert_close(rig.gradient(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("micro", [None, 4])
def test_lower_precision_gives_the_same_gradient_up_to_rounding(
    dtype: Literal["bf16", "fp16"], micro: int | None
) -> None:
    rig = make(dtype=dtype, micro=micro)
    _, expected = plain_gradient(rig, 0)
    rig.drive()
    assert_close(rig.gradient(), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_metrics_are_those_of_the_whole_batch_before_the_step(
    micro: int | None, smoothing: float
) -> None:
    rig = make(micro=micro, smoothing=smoothing)
    losses, hits, count = [], 0, 0
    for index in range(3):
        inputs, targets = rig.batch(index)
        with torch.no_grad():
            hits += int((rig.module(rig.normalize(inputs)).argmax(1) == targets).sum())
        losses.append(plain_gradient(rig, index, smoothing)[0] * len(targets))
        count += len(targets)
        rig.drive()
    totals = rig.meter.collect(Runtime(launcher="python"))
    assert count == 37
    assert totals.score == hits / count
    assert totals.loss == pytest.approx(float(sum(losses)) / count, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 1e-3, 0.5, 1e6])
@pytest.mark.parametrize("micro", [None, 4])
def test_three_steps_are_those_of_a_plain_loop_that_clips_before_it_steps(
    optimizer: str, clip: float | None, micro: int | None
) -> None:
    rig = make(optimizer=optimizer, clip=clip, micro=micro)
    module = copy.deepcopy(rig.module)
    plain = build_optimizer(
        OptimizerConfig(name=optimizer, lr=0.1, momentum=0.9), module.parameters(), CPU
    )
    for index in range(3):
        inputs, targets = rig.batch(index)
        plain.zero_grad()
        F.cross_entropy(module(rig.normalize(inputs)), targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip or float("inf"))
        plain.param_groups[0]["lr"] = rig.rate(index)
        plain.step()
        rig.drive()
        assert float(rig.step.gradient_norm()) == pytest.approx(float(norm), rel=1e-4)
    assert_close(
        list(rig.weights().values()), list(module.state_dict().values()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_clipped_step_is_as_long_as_the_limit_whatever_the_loss_scale(
    dtype: Literal["fp32", "bf16", "fp16"],
) -> None:
    """With fp16 the gradient must be unscaled before it is clipped."""
    rig = make(dtype=dtype, clip=1e-3, momentum=0.0)
    before = rig.weights()
    rig.drive()
    moved = [value - before[name] for name, value in rig.weights().items()]
    length = float(torch.nn.utils.get_total_norm(moved))
    assert length == pytest.approx(0.1 * 1e-3, rel=1e-2)
    assert float(rig.step.gradient_norm()) > 0.01


@pytest.mark.parametrize("warmup", [0, 2])
def test_each_step_is_taken_at_the_rate_of_the_steps_before_it(warmup: int) -> None:
    rig = make(warmup=warmup)
    for index in range(4):
        rig.drive()
        assert rig.optimizer.param_groups[0]["lr"] == rig.rate(index)
    assert (rig.progress.step, rig.progress.global_batches) == (4, 4)


def test_the_average_moves_once_after_every_step() -> None:
    rig = make(decay=0.9)
    reference = EMA(rig.module, 0.9)
    assert rig.ema is not None
    for number in range(1, 5):
        rig.drive()
        reference.update(rig.module, number)
        assert_same_bits(rig.ema.module.state_dict(), reference.module.state_dict())


@pytest.mark.parametrize("num_before", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("micro", [None, 4])
def test_a_step_whose_gradient_overflows_moves_nothing_but_the_global_batch(
    optimizer: str, micro: int | None, num_before: int
) -> None:
    rig = make(dtype="fp16", optimizer=optimizer, micro=micro, decay=0.9, clip=1.0, warmup=9)
    rig.drive(num_before)
    rig.meter.collect(Runtime(launcher="python"))
    assert rig.ema is not None
    before = copy.deepcopy(
        (rig.weights(), rig.optimizer.state_dict()["state"], rig.ema.module.state_dict())
    )
    rig.set_scale(TOO_LARGE)
    rig.drive()
    after = (rig.weights(), rig.optimizer.state_dict()["state"], rig.ema.module.state_dict())
    for mine, theirs in zip(after, before, strict=True):
        assert_same_bits(dict(mine), dict(theirs))
    assert (rig.progress.step, rig.progress.global_batches) == (num_before, num_before + 1)
    assert rig.progress.skipped_steps == 1
    assert rig.scaler.get_scale() == pytest.approx(TOO_LARGE / 2)
    assert rig.meter.collect(Runtime(launcher="python")).loss == 0.0

    rig.set_scale(MODERATE)
    rig.drive()
    assert rig.optimizer.param_groups[0]["lr"] == rig.rate(num_before)
    assert (rig.progress.step, rig.progress.global_batches) == (num_before + 1, num_before + 2)
    assert rig.meter.collect(Runtime(launcher="python")).loss > 0.0


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Memory that nobody has written to is filled with NaN, so that using it shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("num_skipped", [1, 2])
def test_a_run_whose_first_steps_overflow_goes_on_as_if_it_had_begun_after_them(
    optimizer: str, num_skipped: int
) -> None:
    rig = make(dtype="fp16", optimizer=optimizer, init_scale=TOO_LARGE)
    rig.drive(num_skipped)
    assert rig.progress.skipped_steps == num_skipped
    rig.set_scale(MODERATE)
    rig.drive(3)
    late = make(dtype="fp16", optimizer=optimizer, init_scale=MODERATE)
    late.progress.global_batches = num_skipped
    late.drive(3)
    assert_same_bits(rig.weights(), late.weights())
    assert_same_bits(rig.optimizer.state_dict()["state"], late.optimizer.state_dict()["state"])


def test_endless_overflow_is_taken_for_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.step, "HOPELESS_SKIPS", 3)
    rig = make(dtype="fp16", init_scale=TOO_LARGE)
    rig.drive(2)
    with pytest.raises(Diverged, match=r"3 fp16 steps in a row.*optimizer\.lr"):
        rig.drive()
    assert (rig.progress.step, rig.progress.skipped_steps) == (0, 3)


def test_overflows_with_good_steps_between_them_are_not_divergence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer.step, "HOPELESS_SKIPS", 3)
    rig = make(dtype="fp16", optimizer="adam")
    for _ in range(3):
        rig.set_scale(TOO_LARGE)
        rig.drive(2)
        rig.set_scale(MODERATE)
        rig.drive()
    assert (rig.progress.step, rig.progress.skipped_steps) == (3, 6)
    assert rig.progress.skipped_in_a_row == 0


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_overflow_on_the_gpu_moves_nothing_but_the_global_batch(
    gpu: torch.device, optimizer: str
) -> None:
    rig = make(dtype="fp16", optimizer=optimizer, device=gpu, decay=0.9)
    rig.drive(2)
    assert rig.ema is not None
    before = copy.deepcopy((rig.weights(), dict(rig.ema.module.state_dict())))
    rig.set_scale(TOO_LARGE)
    rig.drive()
    assert_same_bits(rig.weights(), before[0])
    assert_same_bits(dict(rig.ema.module.state_dict()), before[1])
    assert (rig.progress.step, rig.progress.global_batches) == (2, 3)


def test_without_fp16_nothing_is_ever_skipped() -> None:
    """A loss that is not finite is found at the next logging step, by the loop."""
    rig = make()
    with torch.no_grad():
        next(rig.module.parameters()).fill_(float("nan"))
    rig.drive()
    assert (rig.progress.step, rig.progress.skipped_steps) == (1, 0)
    assert rig.meter.first_bad_global_batch(Runtime(launcher="python")) == 0
