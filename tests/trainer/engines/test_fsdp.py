"""Sharded weights in a world of one rank; launch/test_parallel.py has several."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import nn

from configs.errors import InputError
from configs.schema import RunConfig
from configs.schema_execution import ParallelConfig
from configs.schema_training import OptimizerConfig, PrecisionConfig
from data.collate import stack
from data.datasets import Datasets
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import Batch, Example
from tests.support.networks import Deep
from trainer.backward.autograd import LossModule
from trainer.engines.dtensor import full_tensor, is_sharded
from trainer.engines.fsdp import ShardedEngine, calling_blocks, check_sharding
from trainer.networks.deferred import Deferred
from trainer.objective.tasks import classification
from trainer.optim.optimizers import build_optimizer
from trainer.ranks.precision import build_precision
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime

Dtype = Literal["fp32", "bf16"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device, with a process group of one rank on it."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    backend = "gloo" if request.param == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield torch.device(request.param)
    dist.destroy_process_group()


class Rig:
    """A model under FSDP, and a copy of it without."""

    def __init__(
        self,
        device: torch.device,
        dtype: Dtype = "fp32",
        *,
        deferred: bool = False,
        kind: str = "AdamW",
        **parallel: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.inputs = torch.randn(8, 6, device=device)
        self.targets = (torch.arange(8) % 3).to(device)
        data: Any = [(part, target) for part, target in zip(self.inputs, self.targets, strict=True)]
        facts = Datasets(
            train=data,
            test=data,
            input_shape=(6,),
            num_classes=3,
            mean=(0.0,),
            std=(1.0,),
            scale=1.0,
        )
        seed_stream(0)
        self.plain = LossModule(
            Deep().to(device),
            normalize=Normalize(facts, device),
            precision=build_precision(PrecisionConfig(dtype=dtype), device),
            task=classification(),
        )
        if dtype == "bf16":  # in which FSDP computes with a scalar, and autocast does not
            self.plain.module.get_parameter("temperature").requires_grad_(False)
        later = Deferred(Deep, lambda: seed_stream(0)) if deferred else None
        self.loss = copy.deepcopy(self.plain)
        if later is not None:
            self.loss.module = later.module
        self.average = copy.deepcopy(self.loss.module).requires_grad_(False).eval()
        self.optimizer, self.plain_optimizer = (
            build_optimizer(OptimizerConfig(name=kind, lr=0.01), loss.parameters(), device)
            for loss in (self.loss, self.plain)
        )
        self.plan = Plan(num_samples=8, global_batch_size=8, micro_batch_size=4, even=True)
        example = Example((self.inputs[0], self.targets[0]), stack)
        self.engine = ShardedEngine(
            self.loss,
            optimizer=self.optimizer,
            average=self.average,
            deferred=later,
            runtime=Runtime(launcher="python", device=device),
            parallel=ParallelConfig(strategy="fsdp", **parallel),
            plan=self.plan,
            example=example,
        )

    def step(self) -> None:
        """One step of either, with the same dropout."""
        global_batch = self.plan.global_batch(0)
        torch.manual_seed(2)
        self.engine.clear()
        for micro in global_batch.micro_batches:
            part = slice(micro.start, micro.stop)
            with self.engine.micro_batch(global_batch, micro):
                batch = Batch(self.inputs[part], self.targets[part], micro.size)
                self.engine.differentiate(batch, 1 / 8)
        self.optimizer.step()
        torch.manual_seed(2)
        self.plain_optimizer.zero_grad()
        for micro in global_batch.micro_batches:
            part = slice(micro.start, micro.stop)
            (self.plain(self.inputs[part], self.targets[part])[0] / 8).backward()
        self.plain_optimizer.step()

    def assert_equal(self, atol: float) -> None:
        ours, theirs = self.engine.weights(), self.plain.module.state_dict()
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), value.cpu(), rtol=0, atol=atol)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize(
    ("dtype", "atol", "options"),
    [
        ("fp32", 1e-6, {}),
        ("bf16", 1e-3, {}),
        ("fp32", 1e-6, {"deferred": True, "reshard_after_forward": False}),
        ("fp32", 2e-3, {"kind": "muon"}),
    ],
)
def test_steps_are_those_of_a_whole_model(
    device: torch.device, dtype: Dtype, atol: float, options: dict[str, Any]
) -> None:
    """Law: two accumulated micro-batches, dropout and batch norm included, from equal bits on."""
    rig = Rig(device, dtype, **options)
    rig.assert_equal(0.0)
    averages = rig.average.state_dict()
    for name, value in rig.plain.module.state_dict().items():
        assert torch.equal(full_tensor(averages[name]).reshape(value.shape), value)
    for _ in range(3):
        rig.step()
    rig.assert_equal(atol)
    moved = (
        rig.engine.weights()["first.weight"]
        - rig.average.state_dict()["first.weight"].full_tensor().cpu()
    )
    assert float(moved.abs().max()) > 0.01


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_state_goes_to_a_whole_model_and_back(device: torch.device) -> None:
    """Law: saved, loaded elsewhere, saved again: the same bits, under the same numbers."""
    rig, other = Rig(device), Rig(device)
    rig.step()
    weights, state = rig.engine.weights(), rig.engine.optimizer_state(rig.optimizer)
    assert not any(hasattr(value, "full_tensor") for value in weights.values())
    other.plain.module.load_state_dict(weights)
    other.plain_optimizer.load_state_dict(copy.deepcopy(state))
    other.engine.load_weights(dict(other.plain.module.state_dict()))
    other.engine.load_optimizer_state(other.optimizer, other.plain_optimizer.state_dict())
    again = other.engine.optimizer_state(other.optimizer)
    assert again["param_groups"] == state["param_groups"]
    assert again["state"].keys() == state["state"].keys()
    for number, own in state["state"].items():
        for name, value in own.items():
            assert torch.equal(again["state"][number][name].cpu(), value.cpu())
    other.assert_equal(0.0)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_running_along_leaves_no_trace(device: torch.device) -> None:
    """An evaluation goes through model and average without a gradient, then training goes on."""
    rig, still = (Rig(device, reshard_after_forward=False) for _ in range(2))
    for module in (rig.engine.module.eval(), rig.average):
        with torch.no_grad():
            rig.engine.run_along(module)
        assert all(is_sharded(parameter) for parameter in module.parameters())
    rig.engine.module.train()
    for either in (rig, still):
        either.step()
    ours, theirs = rig.engine.weights(), still.engine.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_offloaded_weights_wait_in_host_memory(device: torch.device) -> None:
    rig = Rig(device, cpu_offload=True)
    rig.step()
    assert {p.device.type for p in rig.engine.module.parameters()} == {"cpu"}
    rig.assert_equal(1e-5)


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
def test_weights_that_do_not_fit_are_refused(device: torch.device) -> None:
    """With the words of torch, of which the checkpoint's own message is made."""
    rig = Rig(device)
    weights = rig.engine.weights()
    with pytest.raises(RuntimeError, match=r"size mismatch for first\.weight"):
        rig.engine.load_weights(weights | {"first.weight": torch.zeros(2, 2)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        rig.engine.load_weights(weights | {"more": torch.zeros(2)})


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Muon, torch.optim.Adafactor])
def test_optimizers_that_need_whole_weights_are_refused(kind: type) -> None:
    with pytest.raises(InputError, match=f"optimizer.name: given '{kind.__name__}'"):
        check_sharding(RunConfig(), kind([nn.Parameter(torch.zeros(2, 2))], lr=0.1))
    check_sharding(RunConfig(), torch.optim.RMSprop([nn.Parameter(torch.zeros(2, 2))]))


class Uneven(nn.Module):
    def __init__(self, *, empty: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.gain = nn.Parameter(torch.zeros((0, 4) if empty else 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("empty", "named"),
    [(True, r"gain of shape \(0, 4\)"), (False, r"layer.weight of torch.float32, gain of \S+64")],
)
def test_weights_that_fsdp_does_not_cut_are_refused_by_name(empty: bool, named: str) -> None:
    model = Uneven(empty=empty)
    with pytest.raises(InputError, match=named):
        check_sharding(RunConfig(), torch.optim.SGD(model.parameters(), lr=0.1), model)


def test_a_block_that_is_not_called_is_named_with_its_line() -> None:
    with pytest.raises(InputError, match=r"test_fsdp.py:\d+ .*block\(x\)"), calling_blocks():
        raise RuntimeError("aten.mm.default got mixed torch.Tensor and DTensor")
    with pytest.raises(RuntimeError, match="of the user's"), calling_blocks():
        raise RuntimeError("of the user's")
