"""Recordings of any model on any number of ranks: tried first, agreed on, given up in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist

import trainer.cuda_graphs.recorded_steps
from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from configs.schema_training import ScheduleConfig
from tests.support.own_networks import Asking, Counting, Drawing, Noisy, Plain, Replacing
from tests.support.recording import NOISY, Again, drive, everything, rows
from tests.support.rig import Rig, assert_same_bits, make
from trainer.cuda_graphs.recorded_steps import RecordedSteps
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.engines.ddp import EXECUTED_BEFORE_RECORDING
from trainer.engines.flat_all_reduce import FlatAllReduce
from trainer.engines.native import NativeEngine
from trainer.ranks.runtime import Runtime

pytestmark = pytest.mark.usefixtures("one_thread")

T = TypeVar("T")
CUTS = [1] * 16 + [6, 6, 2, 1]
"""Global batches of 37 samples in batches of 16: every third one is short."""
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SETTLED = {"optimizer": "adam", "lr": 2.0**-7, "schedule": ScheduleConfig(name="constant")}
"""A rate that is a float32 number: the same on the host and on the device."""


class Stale(Again):
    """Its replays leave out the optimizer, as a graph would whose step looked at the host."""

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        result, replay = super().record(call)

        def stale() -> None:
            weights = {name: value.clone() for name, value in self.rig.module.state_dict().items()}
            replay()
            self.rig.module.load_state_dict(weights)

        return result, stale


class Refusing(Again):
    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        super().record(call)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def tried(
    network: Callable[[], Any], recorder: type[Again] = Again, **how: bool
) -> tuple[Rig, RecordedSteps, Again]:
    """A run of a user's network that may be recorded, after a few rows of steps."""
    torch.manual_seed(5)
    rig = make(network=network, **SETTLED)
    torch.manual_seed(7)
    found = recorder(rig)
    steps = rows(rig, most=50, recorder=found, **({"tried": True, "required": False} | how))
    assert isinstance(steps, RecordedSteps)
    drive(rig, steps, CUTS)
    return rig, steps, found


def executed(network: Callable[[], Any]) -> Rig:
    """The same run, step by step."""
    torch.manual_seed(5)
    rig = make(network=network, **SETTLED)
    torch.manual_seed(7)
    rig.drive(sum(CUTS))
    return rig


def test_a_network_of_ones_own_is_recorded_after_a_trial() -> None:
    """Law: the trial leaves no trace: the bits are those of steps taken one by one."""
    rig, steps, recorder = tried(Plain)
    assert recorder.replayed > 10
    assert not steps.given_up
    assert_same_bits(everything(rig), everything(executed(Plain)))
    assert not recorder.forgotten
    steps.close()
    assert recorder.forgotten  # whoever still holds a recording, such as a traceback


@pytest.mark.parametrize(
    ("network", "recorder", "reason"),
    [
        (Counting, Again, "changes passes of the model in Python"),
        (Drawing, Again, "draws random numbers on the host"),
        (Replacing, Again, "another tensor in the place of buffer mean"),
        (Plain, Stale, "its replay is .* away from a step"),
        (Plain, Refusing, "not permitted when stream is capturing"),
    ],
)
def test_what_a_replay_would_not_do_again_is_not_recorded(
    caplog: pytest.LogCaptureFixture, network: Any, recorder: type[Again], reason: str
) -> None:
    """Law: one line says why, and the run has the bits of one that never tried."""
    with caplog.at_level(logging.INFO, "convoy"):
        rig, steps, found = tried(network, recorder)
    (line,) = [r.message for r in caplog.records if "compile.capture" in r.message]
    assert line.startswith("steps are taken one by one and not recorded")
    assert "\n" not in line
    assert re.search(reason, line), line
    assert steps.given_up
    assert found.forgotten
    assert steps.max_steps == 1
    if network is not Drawing:  # Python's generator goes on from test to test
        assert_same_bits(everything(rig), everything(executed(network)))
    with pytest.raises(InputError, match=f"--compile.capture false: .*{reason}"):
        tried(network, recorder, required=True)


def test_a_network_that_never_does_the_same_twice_is_recorded() -> None:
    """A step differs from itself as much as its replay does."""
    _, steps, recorder = tried(Noisy)
    assert not steps.given_up
    assert recorder.replayed > 10


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The process group of one rank: all that several do, but for the others."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    backend = "gloo" if request.param == "cpu" else "nccl"
    device = torch.device("cpu") if request.param == "cpu" else torch.device("cuda", 0)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield Runtime(launcher="python", device=device, backend=backend)
    dist.destroy_process_group()


REDUCED: dict[str, dict[str, Any]] = {
    "in one part": {**NOISY},
    "in three parts": {**NOISY, "hidden": (16, 8)},
    "in bf16": {**NOISY, "hidden": (16, 8), "dtype": "bf16", "micro": 5},
    "fp16": {**NOISY, "hidden": (16, 8), "dtype": "fp16", "decay": 0.9, "init_scale": 1e9},
    "DDP": {**NOISY, "backward": "autograd", "decay": 0.9, "clip": 0.1},
}


def in_group(name: str, runtime: Runtime, *, recorded: bool) -> Rig:
    parts = 1e-5 if REDUCED[name].get("hidden") == (16, 8) else 25.0
    compression: Any = "bf16" if name == "in bf16" else "none"
    rig = make(
        **REDUCED[name],
        device=runtime.device,
        runtime=runtime,
        parallel=ParallelConfig(bucket_mb=parts, compression=compression),
        recorded=recorded,
    )
    torch.manual_seed(7)
    return rig


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("group", DEVICES, indirect=True)
def test_collectives_are_recorded_with_the_steps(
    monkeypatch: pytest.MonkeyPatch, group: Runtime, name: str
) -> None:
    """Law: the bits of the same steps executed; on a GPU with NCCL, in graphs."""
    found = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr(trainer.cuda_graphs.recorded_steps, "WARMUP_STEPS", 1 << 30)
        rig = in_group(name, group, recorded=recorded)
        cuda = group.device.type == "cuda"
        recorder: Any = GraphRecorder(group.device, several=True) if cuda else Again(rig)
        steps = rows(rig, most=50, recorder=recorder)
        assert isinstance(steps, RecordedSteps)
        drive(rig, steps, CUTS)
        assert bool(steps.recordings) is recorded
        found.append(everything(rig))
        steps.close()
    assert_same_bits(found[0], found[1])


@pytest.mark.parametrize("group", ["cpu"], indirect=True)
def test_ddp_is_recorded_when_it_has_stopped_to_look_at_its_clock(group: Runtime) -> None:
    rig = in_group("DDP", group, recorded=True)
    recorder = Again(rig)
    steps = rows(rig, most=50, recorder=recorder)
    drive(rig, steps, [1] * EXECUTED_BEFORE_RECORDING)
    assert recorder.recorded == []
    drive(rig, steps, [1])
    assert recorder.recorded == [1]


@pytest.mark.parametrize("group", ["cpu"], indirect=True)
def test_a_layout_that_is_chosen_anew_reduces_once(group: Runtime) -> None:
    """DDP in other buckets, and a flat gradient in other parts, are the same sum; and no random
    number is drawn for it: a run that goes on, or gives up recording, chooses so as well."""
    for name, other in (("DDP", 1e-5), ("in one part", [1, 0])):
        found = []
        for changed in (False, True):
            rig = in_group(name, group, recorded=False)
            engine = rig.step.engine
            assert isinstance(engine, NativeEngine)
            rig.drive(2)
            if changed:
                engine._choose(other)
            rig.drive(2)
            found.append(everything(rig))
        assert_same_bits(found[0], found[1])


@pytest.mark.parametrize("group", ["cpu"], indirect=True)
def test_parts_of_a_gradient_travel_while_lower_ones_are_computed(
    monkeypatch: pytest.MonkeyPatch, group: Runtime
) -> None:
    """Law: the last layers first, the first one after all that is computed, in the last
    micro-batch only."""
    order: list[str] = []
    real = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        order.append(f"send {tensor.numel()}")
        return real(tensor, *args, **kwargs)

    rig = make(
        **{**NOISY, "hidden": (16, 8)},
        micro=8,
        runtime=group,
        parallel=ParallelConfig(bucket_mb=1e-5),
    )
    engine = rig.step.engine
    assert isinstance(engine, NativeEngine)
    assert isinstance(engine.reduction, FlatAllReduce)
    assert [len(part) for part in engine.reduction.parts] == [48 + 16, 128 + 16, 96 + 16]
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    chain = engine.passes.chain  # type: ignore[union-attr]
    weigh = chain.weigh

    def weighed(layer: Any, *args: Any, **kwargs: Any) -> Any:
        call = weigh(layer, *args, **kwargs)
        return lambda: (order.append(f"layer {chain.layers.index(layer)}"), call())

    monkeypatch.setattr(chain, "weigh", weighed)
    rig.drive(1)
    once = ["layer 2", "layer 1", "layer 0"]
    assert order == [*once, "layer 2", "send 64", "layer 1", "send 144", "layer 0", "send 112"]


@pytest.mark.gpu
def test_what_asks_the_device_is_given_up_on_a_gpu(
    gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """A real recording that fails leaves generators, scaler and memory as they were."""
    found = []
    for recorded in (True, False):
        torch.manual_seed(5)
        rig = make(network=Asking, device=gpu, **SETTLED)
        torch.manual_seed(7)
        if recorded:
            steps = rows(rig, most=50, recorder=GraphRecorder(gpu), tried=True, required=False)
            with caplog.at_level(logging.INFO, "convoy"):
                drive(rig, steps, CUTS)
            assert "compile.capture" in caplog.text
        else:
            rig.drive(sum(CUTS))
        found.append(rig.weights())
    assert_same_bits(found[0], found[1])


@pytest.mark.gpu
def test_a_network_of_ones_own_is_recorded_on_a_gpu(gpu: torch.device) -> None:
    found = []
    for recorded in (True, False):
        torch.manual_seed(5)
        rig = make(network=Plain, device=gpu, **SETTLED)
        torch.manual_seed(7)
        steps = rows(rig, most=50, recorder=GraphRecorder(gpu), tried=True, required=True)
        drive(rig, steps, CUTS) if recorded else rig.drive(sum(CUTS))
        found.append(rig.weights())
    assert_same_bits(found[0], found[1])
