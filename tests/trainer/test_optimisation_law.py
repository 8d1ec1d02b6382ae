"""Every optimizer and every scheduler of torch: stopped anywhere and continued, no bit changes."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from configs.schema_training import OptimizerConfig, ScheduleConfig
from tests.support.optimisation import SCHEDULES
from tests.support.rig import assert_same_bits
from tests.support.subjects import RunSubject, Subject, through_disk
from trainer.optim.optimizers import build_optimizer
from trainer.optim.torch_schedule import SCHEDULERS, TorchSchedule

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "ASGD": {"t0": 2.0},
    "Adadelta": {},
    "Adafactor": {},
    "Adagrad": {"lr_decay": 0.1},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adamax": {},
    "LBFGS": {"max_iter": 4, "history_size": 3, "line_search_fn": "strong_wolfe"},
    "Muon": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Rprop": {},
    "SGD": {"nesterov": True},
}
"""Those that run on dense gradients, with arguments of their own."""


class Run(RunSubject):
    """A run of epochs of three steps, with dropout, batch norm and accumulation, that evaluates."""

    def advance(self, step: int) -> None:
        super().advance(step)
        progress, plan = self.rig.progress, self.rig.plan
        if progress.global_batches % plan.epoch_schedule.steps(0) == 0:
            accuracy = {3: 0.5, 6: 0.4, 9: 0.6}.get(progress.global_batches, 0.1)
            self.rig.schedule.evaluated({"accuracy": accuracy}, progress.global_batches)


def assert_law(make: Any, *, stop: int, total: int) -> list[Subject]:
    """Straight through, and stopped after `stop` steps and continued in fresh objects."""
    straight, first, second = make(), None, None
    for step in range(total):
        straight.advance(step)
    expected = copy.deepcopy(straight.bits())
    first = make()
    for step in range(stop):
        first.advance(step)
    state = through_disk(first.save())
    second = make()
    second.load(state)
    for step in range(stop, total):
        second.advance(step)
    assert_same_bits(second.bits(), expected)
    return [straight, second]


def cycles(optimizer: str, schedule: str) -> dict[str, Any]:
    """Momentum can be cycled where there is one."""
    known = inspect.signature(getattr(torch.optim, optimizer)).parameters
    able = "betas" in known or "momentum" in known
    return {} if able or schedule not in ("CyclicLR", "OneCycleLR") else {"cycle_momentum": False}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A scheduler warns when it is not stepped as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def test_no_class_is_left_out() -> None:
    found = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    assert found == {*OPTIMIZERS, "SparseAdam", "Optimizer"}
    assert set(SCHEDULERS) == set(SCHEDULES)


@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_run_with_any_optimizer_continues_bit_for_bit(name: str, reduction: str) -> None:
    kwargs = OPTIMIZERS[name]
    assert_law(
        lambda: Run(optimizer=name, lr=0.02, kwargs=kwargs, reduction=reduction), stop=4, total=6
    )


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Muon", "RMSprop"])
def test_a_run_with_parameter_groups_continues_bit_for_bit(name: str) -> None:
    groups: dict[str, Any] = {"weight_decay": 0.1, "decay_all": False, "layer_decay": 0.5}
    straight, _ = assert_law(lambda: Run(optimizer=name, lr=0.02, **groups), stop=4, total=6)
    assert isinstance(straight, Run)
    assert len({group["lr"] for group in straight.rig.optimizer.param_groups}) > 1


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_a_run_with_any_scheduler_continues_bit_for_bit(name: str, interval: Any) -> None:
    """Momentum that cycles is continued too; three epochs, stopped within the second."""
    config = ScheduleConfig(name=name, kwargs=SCHEDULES[name], interval=interval)
    straight, second = assert_law(lambda: Run(optimizer="sgd", schedule=config), stop=5, total=9)
    assert isinstance(straight, Run)
    assert isinstance(second, Run)
    assert isinstance(straight.rig.schedule, TorchSchedule)
    assert straight.rig.step.learning_rate == second.rig.step.learning_rate
    assert straight.rig.schedule.count > 0


@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_any_optimizer_with_any_scheduler_continues_bit_for_bit(data: st.DataObject) -> None:
    optimizer = data.draw(st.sampled_from(list(OPTIMIZERS)))
    schedule = data.draw(st.sampled_from(list(SCHEDULES)))
    dtype = data.draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    assume(not (optimizer == "LBFGS" and dtype == "fp16"))
    total = data.draw(st.integers(1, 7))
    config = ScheduleConfig(
        name=schedule,
        kwargs=SCHEDULES[schedule] | cycles(optimizer, schedule),
        interval=data.draw(st.sampled_from(["step", "epoch"])),
        warmup_steps=data.draw(st.integers(0, 3)),
    )
    fp16 = {"init_scale": 2.0**20, "growth_interval": 2} if dtype == "fp16" else {}
    keys: dict[str, Any] = {"dtype": dtype, "lr": 0.02, "schedule": config, **fp16}
    keys["clip"] = data.draw(st.sampled_from([None, 0.5]))
    keys["optimizer"], keys["kwargs"] = optimizer, OPTIMIZERS[optimizer]
    # A cycled momentum is set before the next step, so there must be one.
    assert_law(lambda: Run(**keys), stop=data.draw(st.integers(0, total - 1)), total=total)


class SparseSubject:
    """An embedding of which a step sees some rows only."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 3, sparse=True)
        config = OptimizerConfig(name="sparseadam", lr=0.1)
        self.optimizer = build_optimizer(config, self.table.parameters(), torch.device("cpu"))

    def advance(self, step: int) -> None:
        self.optimizer.zero_grad()
        rows = torch.randint(0, 9, (4,), generator=torch.Generator().manual_seed(step))
        self.table(rows).square().sum().backward()
        self.optimizer.step()

    def save(self) -> Any:
        return {"weights": self.table.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: Any) -> None:
        self.table.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])

    def bits(self) -> list[Tensor | dict[str, Any]]:
        return [self.table.weight.detach(), self.optimizer.state_dict()]


def test_sparse_gradients_continue_bit_for_bit() -> None:
    assert_law(SparseSubject, stop=2, total=5)
