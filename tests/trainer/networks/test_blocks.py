"""Blocks of a model, and activation checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from tests.support.networks import Deep
from trainer.networks.blocks import blocks, check_blocks, check_shared_weights, prepare_blocks
from trainer.networks.mlp import MLP

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


class Declared(Deep):
    def blocks(self) -> list[nn.Module]:
        return [self.first, self.last]


def test_blocks_are_the_elements_of_the_outermost_containers() -> None:
    """Containers within containers are taken apart; what has no weights is no block."""
    model = Deep()
    assert blocks(model) == [model.stages[0][0], *model.stages[1]]  # type: ignore[index, misc]
    mlp = MLP((1, 3, 2), 5, hidden=(4, 4))
    assert [type(block) for block in blocks(mlp)] == [nn.Linear] * 3
    assert blocks(nn.Linear(2, 2)) == []


def test_a_model_may_say_what_its_blocks_are() -> None:
    model = Declared()
    assert blocks(model) == [model.first, model.last]


class Kept:
    """Bytes that autograd keeps, outside of checkpointed blocks."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        self.num_bytes += tensor.nbytes
        return tensor


def train(model: nn.Module) -> tuple[list[Tensor], int]:
    """Losses, gradients and buffers after two steps, and the bytes kept for them."""
    torch.manual_seed(1)
    kept, found = Kept(), []
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            loss = model(torch.randn(16, 6)).square().sum()
        loss.backward()
        found += [loss.detach(), torch.rand(1)]
    found += [p.grad for p in model.parameters() if p.grad is not None]
    return [*found, *model.buffers()], kept.num_bytes


@pytest.mark.parametrize("momentum", [0.1, None])
def test_checkpointed_blocks_have_the_same_bits_and_keep_less(momentum: float | None) -> None:
    """Law: loss, gradients, generators, batch-norm statistics and names are those without it."""
    plain = Deep(momentum)
    checkpointed = copy.deepcopy(plain)
    prepare_blocks(checkpointed, ParallelConfig(activation_checkpointing=True), 1)
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    (expected, most), (found, least) = train(plain), train(checkpointed)
    assert len(found) == len(expected) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert least < most / 3
    norms = [part for part in checkpointed.modules() if isinstance(part, nn.BatchNorm1d)]
    assert {norm.momentum for norm in norms} == {momentum}


def test_a_copy_of_a_checkpointed_model_runs_on_its_own_weights() -> None:
    model = Deep().eval()
    prepare_blocks(model, ParallelConfig(activation_checkpointing=True), 1)
    replica = copy.deepcopy(model)
    inputs = torch.randn(4, 6)
    before = replica(inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(replica(inputs), before)
    assert not torch.equal(model(inputs), before)


def test_weights_that_blocks_share_are_refused_by_name() -> None:
    """Each block would get a copy of its own, and they would drift apart without a word."""
    model = Deep()
    check_shared_weights(model, blocks(model))
    one, two = blocks(model)[:2]
    two.inner[0].weight = one.inner[0].weight  # type: ignore[union-attr, index]
    with pytest.raises(InputError, match=r"stages\.0\.0\.inner\.0\.weight and stages\.1\.0\.inner"):
        check_shared_weights(model, blocks(model))
    check_shared_weights(model, [])  # all in one part


@pytest.mark.parametrize(
    ("model", "config", "device", "message"),
    [
        (nn.Linear(2, 2), {"activation_checkpointing": True}, CPU, "a model with blocks"),
        (Deep(), {"sync_batch_norm": True}, CPU, "no kernels for a CPU"),
        (Deep(), {"cpu_offload": True}, torch.device("cuda"), "fsdp on two GPUs or more"),
        (Deep(), {"cpu_offload": True, "strategy": "fsdp"}, CPU, "fsdp on two GPUs or more"),
    ],
)
def test_what_a_model_or_device_cannot_do_is_refused(
    model: nn.Module, config: dict[str, object], device: torch.device, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_blocks(model, ParallelConfig(**config), device, 2)  # type: ignore[arg-type]


def test_batch_norms_of_several_gpus_are_synchronised_under_their_own_names() -> None:
    """The weights stay the objects that the optimizer holds; one rank keeps what it has."""
    config = ParallelConfig(sync_batch_norm=True)
    check_blocks(Deep(), config, torch.device("cuda"), 2)
    model = Deep()
    parameters, names = list(model.parameters()), list(model.state_dict())
    prepare_blocks(model, config, 1)
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in model.modules())
    prepare_blocks(model, config, 2)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in model.modules()) == 3
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
