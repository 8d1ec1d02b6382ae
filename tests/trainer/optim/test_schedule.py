"""The learning rate is a pure function of the step, and torch's schedulers agree with it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from configs.errors import InputError
from configs.schema_training import ScheduleConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.objective.selection import Selection
from trainer.optim.schedule import SHAPES, PureSchedule, build_schedule

PEAK = 0.3


def make(total: int = 60, per_epoch: int = 10, peak: float = PEAK, **keys: Any) -> PureSchedule:
    built = build_schedule(
        ScheduleConfig(**keys),
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak),
        peak=peak,
        total_steps=total,
        epoch_schedule=EpochSchedule(num_samples=per_epoch, batch_sizes=((0, 1),)),
        selection=Selection("accuracy", True),
        evaluate_every=1,
    )
    assert isinstance(built, PureSchedule)
    return built


def torch_rates(
    make_scheduler: Callable[[torch.optim.Optimizer], Any], total: int, every: int = 1
) -> list[float]:
    """The rate torch uses in each of `total` steps, with its scheduler stepped every `every`."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants optimizer.step() called between
        scheduler = make_scheduler(optimizer)
        rates = []
        for step in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            if (step + 1) % every == 0 and step + 1 < total:
                scheduler.step()
    return rates


@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("total", [2, 7, 60])
def test_cosine_is_cosine_annealing_that_ends_with_the_last_step(total: int, final: float) -> None:
    schedule = make(total, name="cosine", final_fraction=final)
    expected = torch_rates(
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total - 1, eta_min=PEAK * final), total
    )
    assert [schedule(s) for s in range(total)] == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("every", "gamma"), [(1, 0.5), (2, 0.1), (3, 1.0)])
def test_step_is_step_lr_stepped_once_an_epoch(every: int, gamma: float) -> None:
    schedule = make(name="step", every_epochs=every, gamma=gamma)
    expected = torch_rates(
        lambda o: lr_scheduler.StepLR(o, step_size=every, gamma=gamma), 60, every=10
    )
    assert [schedule(s) for s in range(60)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("per_epoch", [1, 3, 7, 49, 937])
def test_step_drops_exactly_at_the_ends_of_epochs(per_epoch: int) -> None:
    """Rounding in steps / steps_per_epoch must not move a drop by a step."""
    schedule = make(100 * per_epoch, per_epoch, name="step", every_epochs=1, gamma=0.9)
    for epoch in range(1, 100):
        before, after = schedule(epoch * per_epoch - 1), schedule(epoch * per_epoch)
        assert (before, after) == pytest.approx((PEAK * 0.9 ** (epoch - 1), PEAK * 0.9**epoch))


@pytest.mark.parametrize(("every", "steps"), [(0.5, 5), (0.1, 1), (0.3, 3), (0.7, 7)])
def test_step_may_drop_within_an_epoch(every: float, steps: int) -> None:
    """Thrice a tenth of an epoch is not 0.3 in binary: the third drop must still be on time."""
    schedule = make(40, 10, name="step", every_epochs=every, gamma=0.5)
    assert [schedule(s) for s in range(40)] == pytest.approx(
        [PEAK * 0.5 ** (s // steps) for s in range(40)], rel=1e-9
    )


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_exponential_is_exponential_lr_at_the_ends_of_epochs_and_smooth_between(
    gamma: float,
) -> None:
    schedule = make(name="exponential", gamma=gamma)
    expected = torch_rates(lambda o: lr_scheduler.ExponentialLR(o, gamma), 60, every=10)
    assert [schedule(s) for s in range(0, 60, 10)] == pytest.approx(expected[::10], rel=1e-9)
    ratios = [schedule(s + 1) / schedule(s) for s in range(59)]
    assert ratios == pytest.approx([gamma**0.1] * 59, rel=1e-9)


@pytest.mark.parametrize("total", [10, 60, 61])
@pytest.mark.parametrize(
    ("initial", "final", "peak_fraction"), [(0.04, 4e-6, 0.3), (0.5, 0.01, 0.5), (1.0, 0.2, 0.1)]
)
def test_one_cycle_is_one_cycle_lr_with_its_peak_in_the_same_place(
    total: int, initial: float, final: float, peak_fraction: float
) -> None:
    schedule = make(
        total,
        name="one_cycle",
        initial_fraction=initial,
        final_fraction=final,
        peak_fraction=peak_fraction,
    )
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=PEAK,
            total_steps=total,
            # torch puts the peak at pct_start * total - 1, we at peak_fraction of the way.
            pct_start=(peak_fraction * (total - 1) + 1) / total,
            anneal_strategy="cos",
            cycle_momentum=False,
            div_factor=1 / initial,
            final_div_factor=initial / final,
        ),
        total,
    )
    assert [schedule(s) for s in range(total)] == pytest.approx(expected, rel=1e-9)


def test_constant_stays_at_the_peak() -> None:
    schedule = make(name="constant")
    assert {schedule(s) for s in range(60)} == {PEAK}


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("warmup", [1, 2, 9])
def test_warm_up_rises_linearly_to_the_peak_and_the_shape_begins_after_it(
    name: str, warmup: int
) -> None:
    warm = make(60 + warmup, name=name, warmup_steps=warmup, initial_fraction=1.0)
    plain = make(60, name=name, initial_fraction=1.0)
    rising = [warm(s) for s in range(warmup)]
    assert rising == pytest.approx([PEAK * (s + 1) / warmup for s in range(warmup)])
    assert [warm(warmup + s) for s in range(60)] == pytest.approx([plain(s) for s in range(60)])
    assert warm(warmup) == pytest.approx(PEAK)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_the_last_step_is_taken_at_the_final_fraction(name: str, warmup: int) -> None:
    schedule = make(40, name=name, warmup_steps=warmup, final_fraction=0.125, initial_fraction=0.5)
    assert schedule(39) == pytest.approx(PEAK * 0.125, rel=1e-12)
    assert all(schedule(s) > PEAK * 0.125 for s in range(warmup, 39))
    assert schedule(1000) == schedule(39)  # a run is never asked, but must not rise again


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_rate_of_a_step_does_not_depend_on_what_was_asked_before(name: str) -> None:
    schedule = make(name=name, warmup_steps=3)
    forwards = [schedule(s) for s in range(60)]
    backwards = [schedule(s) for s in reversed(range(60))]
    assert backwards[::-1] == forwards
    assert make(name=name, warmup_steps=3)(31) == forwards[31]
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.peak = 1.0  # type: ignore[misc]


FRACTIONS = st.floats(0, 1)


@st.composite
def schedules(draw: st.DrawFn) -> PureSchedule:
    total = draw(st.integers(1, 3000))
    warmup = draw(st.integers(0, total - 1))
    return make(
        total,
        draw(st.integers(1, 1000)),
        draw(st.floats(1e-12, 1e3)),
        name=draw(st.sampled_from(list(SHAPES))),
        warmup_steps=warmup,
        final_fraction=draw(FRACTIONS),
        initial_fraction=draw(FRACTIONS),
        peak_fraction=draw(st.floats(0, 1, exclude_min=True, exclude_max=True)),
        every_epochs=draw(st.floats(1e-3, 1e3)),
        gamma=draw(st.floats(0, 1, exclude_min=True)),
    )


@settings(deadline=None, max_examples=400)
@given(schedule=schedules(), data=st.data())
def test_the_rate_is_never_negative_and_never_above_its_peak(
    schedule: PureSchedule, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, schedule.total_steps + 5))
    warmup = schedule.config.warmup_steps
    for asked in {0, max(warmup - 1, 0), warmup, step, schedule.total_steps - 1}:
        rate = schedule(asked)
        assert math.isfinite(rate)
        assert 0 <= rate <= schedule.peak


@pytest.mark.parametrize("warmup", [60, 61])
def test_a_warm_up_that_outlasts_the_run_is_refused(warmup: int) -> None:
    with pytest.raises(InputError, match=r"schedule.warmup_steps.*60"):
        make(60, warmup_steps=warmup)


def test_a_misspelt_schedule_is_answered_with_the_closest_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'cosine'"):
        make(name="cosin")
