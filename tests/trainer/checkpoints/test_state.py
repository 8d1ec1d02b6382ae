"""State is data: stop anywhere, store it, restore it into fresh objects, and nothing changes."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema_training import OptimizerConfig, PrecisionConfig
from tests.support.rig import assert_same_bits, make
from tests.support.subjects import RunSubject, Subject, stateful, through_disk
from trainer.checkpoints.state import capture, restore
from trainer.objective.meter import Meter
from trainer.optim.average import EMA
from trainer.optim.optimizers import build_optimizer
from trainer.ranks.precision import build_precision
from trainer.ranks.rng import capture_rng, restore_rng, seed_stream
from trainer.ranks.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ALONE = Runtime(launcher="python")
TOTAL = 6


class OptimizerSubject:
    def __init__(self, config: OptimizerConfig) -> None:
        self.parameters = [nn.Parameter(torch.linspace(-1, 1, n)) for n in (7, 4)]
        self.optimizer = build_optimizer(config, self.parameters, CPU)

    def advance(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        self.optimizer.step()

    def save(self) -> Any:
        return {"values": self.parameters, "optimizer": self.optimizer.state_dict()}

    def load(self, state: Any) -> None:
        with torch.no_grad():
            for mine, saved in zip(self.parameters, state["values"], strict=True):
                mine.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])

    def bits(self) -> Any:
        return [*(p.detach() for p in self.parameters), self.optimizer.state_dict()]


class ScalerSubject:
    """Overflows in steps 1 and 4, and grows after every two steps without."""

    def __init__(self) -> None:
        config = PrecisionConfig(dtype="fp16", init_scale=64.0, growth_interval=2)
        self.scaler = build_precision(config, CPU).scaler
        self.parameter = nn.Parameter(torch.zeros(1))
        self.optimizer = torch.optim.SGD([self.parameter], lr=0.0)
        self.scaler.scale(torch.zeros(1))

    def advance(self, step: int) -> None:
        self.parameter.grad = torch.tensor([float("inf") if step in (1, 4) else 1.0])
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def save(self) -> Any:
        return self.scaler.state_dict()

    def load(self, state: Any) -> None:
        self.scaler.load_state_dict(state)

    def bits(self) -> Any:
        return self.scaler.state_dict()


class EMASubject:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.ema = EMA(self.model, 0.99)

    def advance(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for value in (*self.model.parameters(), self.model[1].running_mean):
                value.copy_(torch.randn(value.shape, generator=generator))
        self.ema.update(self.model, step + 1)

    def save(self) -> Any:
        return self.ema.module.state_dict()

    def load(self, state: Any) -> None:
        self.ema.module.load_state_dict(state)

    def bits(self) -> Any:
        return dict(self.ema.module.state_dict())


class MeterSubject:
    def __init__(self) -> None:
        self.meter = Meter()

    def advance(self, step: int) -> None:
        self.meter.add(step, torch.tensor(1.5**step), torch.tensor(step), step + 2)
        self.meter.add(step, torch.tensor(0.1), torch.tensor(0), 1)
        if step == 4:
            self.meter.forget(4)

    def save(self) -> Any:
        return self.meter.state_dict()

    def load(self, state: Any) -> None:
        self.meter.load_state_dict(state)

    def bits(self) -> Any:
        global_batches = self.meter.state_dict()
        return [global_batches, dataclasses.asdict(self.meter.collect(ALONE))]


class RngSubject:
    def __init__(self) -> None:
        seed_stream(0, "law")

    def advance(self, step: int) -> None:
        self.draw()

    def draw(self) -> list[float]:
        return [float(torch.randn(())), random.gauss(0, 1), float(np.random.randn())]

    def save(self) -> Any:
        return capture_rng(CPU)

    def load(self, state: Any) -> None:
        restore_rng(state, CPU)

    def bits(self) -> Any:
        return [capture_rng(CPU), self.draw(), self.draw()]


OVERFLOWS = {"dtype": "fp16", "init_scale": 2.0**20, "growth_interval": 2}
"""Begins with skipped steps, and runs into one again whenever the scale has grown."""

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "sgd": lambda: OptimizerSubject(OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.1)),
    "momentum": lambda: OptimizerSubject(OptimizerConfig(name="sgd")),
    "nesterov": lambda: OptimizerSubject(OptimizerConfig(name="sgd", nesterov=True)),
    "adam": lambda: OptimizerSubject(OptimizerConfig(name="adam", weight_decay=0.1)),
    "adamw": lambda: OptimizerSubject(OptimizerConfig(name="adamw", weight_decay=0.1)),
    "scaler": ScalerSubject,
    "ema": EMASubject,
    "meter": MeterSubject,
    "rng": RngSubject,
    "run sgd": lambda: RunSubject(optimizer="sgd"),
    "run adam": lambda: RunSubject(optimizer="adam"),
    "run adamw bf16": lambda: RunSubject(optimizer="adamw", dtype="bf16", weight_decay=0.1),
    "run adam fp16": lambda: RunSubject(optimizer="adam", **OVERFLOWS),
    "run adam exact": lambda: RunSubject(optimizer="adam", reduction="exact"),
}


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("name", list(SUBJECTS))
def test_stopping_and_continuing_is_as_if_it_had_not_stopped(name: str, stop: int) -> None:
    straight = SUBJECTS[name]()
    for step in range(TOTAL):
        straight.advance(step)
    expected = copy.deepcopy(straight.bits())

    first = SUBJECTS[name]()
    for step in range(stop):
        first.advance(step)
    state = through_disk(first.save())
    second = SUBJECTS[name]()
    second.load(state)
    for step in range(stop, TOTAL):
        second.advance(step)
    assert_same_bits(second.bits(), expected)


def test_a_run_with_fp16_really_skips_and_really_steps() -> None:
    run = RunSubject(optimizer="adam", **OVERFLOWS)
    for step in range(TOTAL):
        run.advance(step)
    assert run.rig.progress.skipped_steps > 0
    assert run.rig.progress.step > 0


@pytest.fixture
def trained() -> RunSubject:
    run = RunSubject(optimizer="adam")
    for step in range(3):
        run.advance(step)
    return run


def test_a_captured_state_does_not_move_with_the_run(trained: RunSubject) -> None:
    state = trained.save()
    before = copy.deepcopy(state)
    trained.advance(3)
    assert_same_bits(state, before)
    assert not torch.equal(
        trained.save()["weights"]["layers.1.weight"], before["weights"]["layers.1.weight"]
    )


def test_capturing_does_not_disturb_the_run(trained: RunSubject) -> None:
    assert_same_bits(trained.save(), trained.save())


def test_the_weights_are_contiguous_and_under_the_names_the_user_gave_them(
    trained: RunSubject,
) -> None:
    weights = trained.save()["weights"]
    assert list(weights) == list(trained.rig.module.state_dict())
    assert all(value.is_contiguous() and value.device == CPU for value in weights.values())


@pytest.mark.parametrize(
    "other", [{"hidden": 9}, {"batch_norm": False}, {"optimizer": "sgd"}], ids=str
)
def test_a_state_of_another_model_or_optimizer_is_refused(
    trained: RunSubject, other: dict[str, Any]
) -> None:
    same = {"optimizer": "adam", "batch_norm": True, "dropout": 0.3, "decay": 0.9}
    assert restore(stateful(make(**same)), **trained.save(), exact=False) == []
    with pytest.raises(InputError, match="does not fit"):
        restore(stateful(make(**{**same, **other})), **trained.save(), exact=False)


@pytest.mark.parametrize("key", ["optimizer", "scaler", "ema", "progress", "ranks", "device_type"])
def test_a_state_with_a_part_missing_is_refused(trained: RunSubject, key: str) -> None:
    state = trained.save()
    del state["trainer"][key]
    fresh = RunSubject(optimizer="adam", dtype="fp16" if key == "scaler" else "fp32")
    with pytest.raises(InputError, match=key):
        restore(fresh.state, **state, exact=False)


def test_a_state_with_a_part_unheard_of_is_refused(trained: RunSubject) -> None:
    state = trained.save()
    state["trainer"]["progress"]["distance"] = 3
    with pytest.raises(InputError, match="distance"):
        restore(RunSubject(optimizer="adam").state, **state, exact=False)


def test_an_average_begun_later_begins_at_the_restored_weights() -> None:
    """A checkpoint without an average, continued with train.ema_decay."""
    saved = make(optimizer="adam")
    saved.drive(3)
    weights, trainer = capture(stateful(saved))
    fresh = make(optimizer="adam", decay=0.999)
    restore(stateful(fresh), weights, trainer, exact=False)
    assert fresh.ema is not None
    assert_same_bits(dict(fresh.ema.module.state_dict()), weights)


def test_a_restored_optimizer_keeps_the_config_it_was_built_with() -> None:
    """`--checkpoint.resume PATH` continues a run as changed: the change must not be undone."""
    saved = make(optimizer="adamw", weight_decay=0.1)
    saved.drive(3)
    fresh = make(optimizer="adamw", weight_decay=0.5)
    restore(stateful(fresh), *capture(stateful(saved)), exact=False)
    assert fresh.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_loss_scale_begun_later_begins_at_its_first_value() -> None:
    """A checkpoint in fp32, continued with fp16."""
    saved = make(optimizer="adam")
    saved.drive()
    fresh = make(optimizer="adam", dtype="fp16", init_scale=512.0)
    assert restore(stateful(fresh), *capture(stateful(saved)), exact=False) == []
    assert fresh.scaler.get_scale() == 512.0


def of_two_ranks(run: RunSubject) -> dict[str, Any]:
    """The state as two ranks would have saved it: the second has metrics of its own."""
    state = run.save()
    other = Meter()
    other.add(0, torch.tensor(100.0), torch.tensor(7), 10)
    second = {"rng": state["trainer"]["ranks"][0]["rng"], "meter": other.state_dict()}
    state["trainer"]["ranks"].append(second)
    return state


def test_fewer_ranks_take_over_the_metrics_and_say_what_cannot_be_the_same(
    trained: RunSubject,
) -> None:
    mine = copy.deepcopy(trained.rig.meter).collect(ALONE)
    count = sum(trained.rig.plan.global_batch(index).size for index in range(3))
    fresh = RunSubject(optimizer="adam")
    state = of_two_ranks(trained)
    (note,) = restore(fresh.state, **state, exact=False)
    assert "2 ranks" in note
    assert "dropout" in note
    merged = fresh.rig.meter.collect(ALONE)
    assert merged.loss == pytest.approx((mine.loss * count + 100) / (count + 10))
    assert merged.score == pytest.approx((mine.score * count + 7) / (count + 10))
    assert_same_bits(capture(fresh.state)[0], state["weights"])


def test_another_kind_of_device_is_noted_and_everything_else_restored(trained: RunSubject) -> None:
    state = trained.save()
    state["trainer"]["device_type"] = "cuda"
    fresh = RunSubject(optimizer="adam")
    (note,) = restore(fresh.state, **state, exact=False)
    assert "cuda" in note
    found = fresh.save()
    for key in ("progress", "optimizer", "ema", "scaler"):
        assert_same_bits(found["trainer"][key], state["trainer"][key])


def test_under_exact_reduction_another_number_of_ranks_changes_no_bit_and_needs_no_note() -> None:
    straight = RunSubject(optimizer="adam", reduction="exact")
    first = RunSubject(optimizer="adam", reduction="exact")
    for step in range(TOTAL):
        straight.advance(step)
    for step in range(3):
        first.advance(step)
    state = of_two_ranks(first)
    second = RunSubject(optimizer="adam", reduction="exact")
    torch.manual_seed(99)
    assert restore(second.state, **state, exact=True) == []
    for step in range(3, TOTAL):
        second.advance(step)
    found, expected = second.save(), straight.save()
    assert_same_bits(found["weights"], expected["weights"])
    for key in ("progress", "optimizer", "ema"):
        assert_same_bits(found["trainer"][key], expected["trainer"][key])


def test_new_ranks_draw_from_streams_of_their_own_that_depend_on_the_position(
    trained: RunSubject,
) -> None:
    state = trained.save()

    def drawn(rank: int) -> Tensor:
        runtime = Runtime(launcher="torchrun", rank=rank, world_size=2)
        torch.manual_seed(99)
        rig = make(optimizer="adam", batch_norm=True, dropout=0.3, decay=0.9)
        restore(stateful(rig, runtime), **state, exact=False)
        assert bool(rig.meter.state_dict()["windows"]) == (rank == 0)
        return torch.rand(4)

    first = drawn(0)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)
    for key in ("window", "skipped_steps"):
        state["trainer"]["progress"][key] += 1
    assert not torch.equal(drawn(0), first)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_run_on_the_gpu_continues_from_its_state(gpu: torch.device, dtype: str) -> None:
    device = torch.device(gpu.type, torch.cuda.current_device())
    runtime = Runtime(launcher="python", device=device)
    keys = {"optimizer": "adam", "dropout": 0.3, "decay": 0.9, "dtype": dtype, "device": device}

    straight = make(**keys)
    seed_stream(3, "rank", 0)
    straight.drive(TOTAL)
    first = make(**keys)
    seed_stream(3, "rank", 0)
    first.drive(2)
    weights, trainer = through_disk(capture(stateful(first, runtime)))
    assert all(value.device == CPU for value in weights.values())
    second = make(**keys)
    assert restore(stateful(second, runtime), weights, trainer, exact=False) == []
    second.drive(TOTAL - 2)
    assert_same_bits(second.weights(), straight.weights())
