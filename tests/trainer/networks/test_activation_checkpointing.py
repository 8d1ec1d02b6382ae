"""Activation checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.support.networks import Deep
from trainer.networks.activation_checkpointing import checkpoint_activations
from trainer.networks.blocks import blocks


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


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
    checkpoint_activations(blocks(checkpointed))
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    (expected, most), (found, least) = train(plain), train(checkpointed)
    assert len(found) == len(expected) > 20
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert least < most / 3
    norms = [part for part in checkpointed.modules() if isinstance(part, nn.BatchNorm1d)]
    assert {norm.momentum for norm in norms} == {momentum}


def test_a_copy_of_a_checkpointed_model_runs_on_its_own_weights() -> None:
    model = Deep().eval()
    checkpoint_activations(blocks(model))
    replica = copy.deepcopy(model)
    inputs = torch.randn(4, 6)
    before = replica(inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(replica(inputs), before)
    assert not torch.equal(model(inputs), before)
