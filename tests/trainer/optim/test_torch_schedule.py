"""Torch's schedulers give the rates they give in a plain loop, whoever wraps the optimizer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from torch import nn
from torch.optim import lr_scheduler

from configs.errors import InputError
from configs.schema_training import ScheduleConfig
from data.loading.epoch_schedule import EpochSchedule
from tests.support.optimisation import SCHEDULES, halved, shrinking
from tests.support.rig import TOO_LARGE, make
from trainer.objective.selection import Selection
from trainer.optim.schedule import PureSchedule, Schedule, build_schedule
from trainer.optim.torch_schedule import TorchSchedule

PEAK, PER_EPOCH, TOTAL = 0.2, 4, 20
PLAIN: dict[str, dict[str, Any]] = {
    "CosineAnnealingLR": {"T_max": TOTAL},
    "CyclicLR": {**SCHEDULES["CyclicLR"], "max_lr": PEAK},
    "LambdaLR": {"lr_lambda": halved},
    "MultiplicativeLR": {"lr_lambda": shrinking},
    "OneCycleLR": {"max_lr": PEAK, "total_steps": TOTAL},
}
"""What is told to a class by hand that the config need not say."""


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)


def schedule_of(
    real: torch.optim.Optimizer,
    *,
    higher: bool = True,
    evaluate_every: int | None = 1,
    total: int = TOTAL,
    **keys: Any,
) -> Schedule:
    return build_schedule(
        ScheduleConfig(**keys),
        optimizer=real,
        peak=PEAK,
        total_steps=total,
        epoch_schedule=EpochSchedule(num_samples=PER_EPOCH, batch_sizes=((0, 1),)),
        selection=Selection("accuracy", higher),
        evaluate_every=evaluate_every,
    )


def plain(name: str, real: torch.optim.Optimizer) -> Any:
    kwargs = dict(PLAIN.get(name, SCHEDULES[name]))
    for entry in kwargs.get("schedulers", []):
        assert set(entry) == {"name", "kwargs"}
    if "schedulers" in kwargs:
        kwargs["schedulers"] = [
            getattr(lr_scheduler, entry["name"])(real, **entry["kwargs"])
            for entry in kwargs["schedulers"]
        ]
        if name == "ChainedScheduler":
            return lr_scheduler.ChainedScheduler(**kwargs)
    return getattr(lr_scheduler, name)(real, **kwargs)


def settings_of(real: torch.optim.Optimizer) -> tuple[float, float]:
    group = real.param_groups[0]
    return group["lr"], group["momentum"]


@pytest.mark.parametrize("every", [1, PER_EPOCH])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "ReduceLROnPlateau"])
def test_rates_and_momenta_are_those_of_a_plain_loop(name: str, every: int) -> None:
    """Stepped after every step, or after the last one of every epoch."""
    theirs, mine = optimizer(), optimizer()
    scheduler = plain(name, theirs)
    kwargs = SCHEDULES[name] | ({"total_steps": TOTAL} if name == "OneCycleLR" else {})
    kwargs |= {"T_max": TOTAL} if name == "CosineAnnealingLR" else {}
    interval = "step" if every == 1 else "epoch"
    schedule = schedule_of(mine, name=name.lower(), kwargs=kwargs, interval=interval)
    found, expected = [], []
    for step in range(18):
        expected.append(settings_of(theirs))
        theirs.step()
        if (step + 1) % every == 0:
            scheduler.step()
        rate = schedule.apply(mine, step, step)
        found.append(settings_of(mine))
        assert rate == found[-1][0]
    assert found == expected
    assert len(set(found)) > 1


@pytest.mark.parametrize("higher", [True, False])
def test_the_rate_falls_when_the_best_metric_stays_where_it_is(higher: bool) -> None:
    """Only evaluations at the ends of epochs count, in the direction of the metric."""
    real = optimizer()
    kwargs = {"patience": 1, "factor": 0.5}
    schedule = schedule_of(real, name="ReduceLROnPlateau", kwargs=kwargs, higher=higher)
    rates = []
    for epoch, value in enumerate([1.0, 2.0, 2.0, 2.0, 1.5, 1.5, 3.0], start=1):
        value = value if higher else 1 / value
        schedule.evaluated({"accuracy": value}, epoch * PER_EPOCH)
        schedule.evaluated({"accuracy": 0.3}, epoch * PER_EPOCH + 1)  # the end of a run
        rates.append(schedule.apply(real, 0, 0) / PEAK)
    assert rates == [1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_warm_up_of_ours_comes_before_and_its_steps_are_not_counted() -> None:
    real = optimizer()
    schedule = schedule_of(
        real, name="StepLR", kwargs={"step_size": 2, "gamma": 0.5}, warmup_steps=4
    )
    seen = schedule.preview(range(9))
    rates = [schedule.apply(real, step, step) for step in range(9)]
    assert rates == seen
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25]
    assert rates == pytest.approx([PEAK * fraction for fraction in expected])


def test_a_step_that_fp16_skips_does_not_move_it() -> None:
    config = ScheduleConfig(name="ExponentialLR", kwargs={"gamma": 0.5})
    rig = make(dtype="fp16", schedule=config)
    rates = []
    for scale in (1024.0, TOO_LARGE, TOO_LARGE, 1024.0, 1024.0):
        rig.set_scale(scale)
        rig.drive()
        rates.append(rig.step.learning_rate)
    assert rates == pytest.approx([0.1, 0.05, 0.05, 0.05, 0.025])
    assert rig.progress.skipped_steps == 2


def test_an_epoch_ends_with_its_last_global_batch_even_if_that_is_skipped() -> None:
    """37 samples: three global batches an epoch."""
    config = ScheduleConfig(name="ExponentialLR", kwargs={"gamma": 0.5}, interval="epoch")
    rig = make(dtype="fp16", schedule=config)
    rig.drive(2)
    rig.set_scale(TOO_LARGE)
    rig.drive()
    rig.set_scale(1024.0)
    rig.drive()
    assert rig.step.learning_rate == pytest.approx(0.05)


def test_every_group_has_the_rate_times_its_own_factor() -> None:
    rig = make(
        layer_decay=0.5, schedule=ScheduleConfig(name="StepLR", kwargs={"step_size": 1}), lr=0.4
    )
    rig.drive(2)
    rates = [group["lr"] for group in rig.optimizer.param_groups]
    assert rates == pytest.approx([0.4 * 0.1 * 0.5, 0.4 * 0.1])


def test_preview_changes_nothing() -> None:
    real = optimizer()
    schedule = schedule_of(real, name="CyclicLR", kwargs=SCHEDULES["CyclicLR"])
    schedule.apply(real, 3, 3)
    before, state = settings_of(real), schedule.state_dict()
    assert len(set(schedule.preview([0, 5, 9]))) > 1
    assert schedule.state_dict() == state
    assert settings_of(real) == before
    assert schedule.apply(real, 3, 3) == before[0]


def test_a_checkpoint_without_a_schedule_is_caught_up_with() -> None:
    first, second = optimizer(), optimizer()
    ahead = schedule_of(first, name="OneCycleLR")
    rates = [ahead.apply(first, step, step) for step in range(8)]
    fresh = schedule_of(second, name="OneCycleLR")
    fresh.load_state_dict({})
    assert fresh.apply(second, 7, 7) == rates[7]
    assert settings_of(second) == settings_of(first)


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_steps_change_comes_back(name: str) -> None:
    """Law: all of it, though what follows from the config is not taken from a checkpoint."""
    real = optimizer()
    saved, fresh = (schedule_of(real, name=name, kwargs=SCHEDULES[name]) for _ in range(2))
    saved.apply(real, 7, 7)
    for epoch, value in enumerate((0.3, 0.2, 0.2, 0.1), start=1):
        saved.evaluated({"accuracy": value}, epoch * PER_EPOCH)
    state = saved.state_dict()
    assert state != fresh.state_dict()
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state


def test_changed_arguments_hold_from_the_continued_step_on() -> None:
    saved = schedule_of(optimizer(), name="StepLR", kwargs={"step_size": 1, "gamma": 0.5})
    saved.apply(optimizer(), 6, 6)
    real = optimizer()
    changed = schedule_of(real, name="StepLR", kwargs={"step_size": 1, "gamma": 0.9})
    changed.load_state_dict(saved.state_dict())
    assert changed.apply(real, 6, 6) == pytest.approx(PEAK * 0.9**6)


class Halving(lr_scheduler.LRScheduler):
    def get_lr(self) -> list[float]:
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


class Unsaveable(Halving):
    def state_dict(self) -> dict[str, Any]:
        return {"self": Unsaveable}


def factory(optimizer: torch.optim.Optimizer, size: int = 1) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, step_size=size, gamma=0.5)


def shape(config: ScheduleConfig, progress: float, epochs: float) -> float:
    return 0.5 ** (epochs * 4)


def wrong(optimizer: torch.optim.Optimizer) -> int:
    return 3


@pytest.mark.parametrize("name", ["Halving", "factory", "shape"])
def test_a_class_a_factory_or_a_shape_may_be_named_by_import_path(name: str) -> None:
    real = optimizer()
    schedule = schedule_of(real, name=f"{__name__}:{name}")
    assert isinstance(schedule, PureSchedule if name == "shape" else TorchSchedule)
    rates = [schedule.apply(real, step, step) for step in range(4)]
    assert rates == pytest.approx([PEAK, PEAK / 2, PEAK / 4, PEAK / 8])


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "StepLr2"}, "Did you mean 'StepLR'"),
    ({"name": "StepLR"}, r"schedule.kwargs.*step_size.*Missing a required argument"),
    (
        {"name": "StepLR", "kwargs": {"step_size": 1, "size": 3}},
        r"unexpected keyword argument 'size'",
    ),
    ({"name": "ReduceLROnPlateau", "kwargs": {"factor": 2.0}}, r"Factor should be < 1.0"),
    ({"name": "OneCycleLR", "kwargs": {"total_steps": 9}}, "20 steps of the run, not 9"),
    ({"name": "cosine", "kwargs": {"T_max": 3}}, "schedule.kwargs.*none with"),
    ({"name": "SequentialLR", "kwargs": {"schedulers": ["StepLR"]}}, "for each"),
    (
        {"name": "SequentialLR", "kwargs": {"schedulers": [{"name": "SteLR"}], "milestones": []}},
        "Did you mean 'StepLR'",
    ),
    ({"name": "LambdaLR", "kwargs": {"lr_lambda": "nowhere:f"}}, "importable module"),
    ({"name": f"{__name__}:wrong"}, "LRScheduler"),
    ({"name": f"{__name__}:Unsaveable"}, r"state_dict\(\) is made of"),
    ({"name": "ReduceLROnPlateau", "evaluate_every": None}, "evaluate.every_epochs"),
]


@pytest.mark.parametrize(("keys", "said"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_no_run_could_use_is_refused(keys: dict[str, Any], said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=said):
            schedule_of(optimizer(), **keys)
