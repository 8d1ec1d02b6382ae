"""The bare kernel, over whole tensors and over pieces, takes the steps of the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.optimisation import FUSED_OPTIMIZERS
from trainer.networks.mlp import MLP
from trainer.optim.fused import BLOCK, TOGETHER, DirectKernel, piece_size, pieces


def pair(name: str) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    module = MLP((1, 3, 3), 5, hidden=(70, 60))
    return [(m, FUSED_OPTIMIZERS[name](m.parameters())) for m in (module, copy.deepcopy(module))]


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    kept = optimizer.state_dict()["state"]
    return [*module.state_dict().values(), *(v for row in kept.values() for v in row.values())]


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("overflows", [None, False, True])
@pytest.mark.parametrize("name", FUSED_OPTIMIZERS)
def test_the_bits_are_those_of_the_whole_step(
    name: str, overflows: bool | None, in_pieces: bool
) -> None:
    """Law: values, states and step counts, also when a GradScaler has found an overflow, and from
    a state that was loaded in between."""
    (whole, expected), (cut, optimizer) = pair(name)
    kernel = DirectKernel(optimizer)
    for seed in range(5):
        for module, its in ((whole, expected), (cut, kernel)):
            set_gradients(module, seed)
            if seed and overflows is not None:
                its.found_inf = torch.tensor(float(overflows))  # type: ignore[attr-defined]
                its.grad_scale = None  # type: ignore[attr-defined]
        expected.step()
        if seed:
            assert kernel.take(in_pieces=in_pieces)
        else:
            optimizer.step()  # makes the state
        if seed == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    mine, theirs = state(cut, optimizer), state(whole, expected)
    for one, other in zip(mine, theirs, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_what_it_does_not_know_is_left_to_the_optimizer() -> None:
    (module, optimizer), _ = pair("adam")
    kernel = DirectKernel(optimizer)
    set_gradients(module, 0)
    assert not kernel.take(in_pieces=False), "there is no state yet"
    assert not any(optimizer.state.values()), "and none was made"
    kernel.step()
    for in_pieces in (False, True):
        assert kernel.take(in_pieces=in_pieces)
    first = next(module.parameters())
    assert first.grad is not None
    gradient, first.grad = first.grad, first.grad.t().contiguous().t()
    assert not kernel.take(in_pieces=True), "a gradient that does not lie as its weight"
    first.grad = None
    assert not kernel.take(in_pieces=False), "a weight that was not used"
    first.grad = gradient
    for name in ("amsgrad", "maximize"):
        optimizer.param_groups[0][name] = True
        kernel.known = None
        assert not kernel.take(in_pieces=False)
        optimizer.param_groups[0][name] = False
    assert kernel.take(in_pieces=False)
    kernel.known = None
    optimizer.register_step_post_hook(lambda *_: None)
    assert not kernel.take(in_pieces=False), "a hook wants to be called"


def test_groups_have_rates_of_their_own_and_numbers_of_one_type() -> None:
    """Law: as torch steps them; a group of several types is left to torch."""
    found = []
    for direct in (True, False):
        torch.manual_seed(1)
        weights = [nn.Parameter(torch.randn(4)) for _ in range(3)]
        groups = [{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "weight_decay": 0.5}]
        optimizer = torch.optim.AdamW(groups, lr=0.01, fused=True)
        kernel = DirectKernel(optimizer)
        for _ in range(4):
            for weight in weights:
                weight.grad = torch.randn(4)
            if direct:
                kernel.step()
            else:
                optimizer.step()
        assert (kernel.known is not None) == direct
        found.append([weight.detach().clone() for weight in weights])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    mixed = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3).double())]
    optimizer = torch.optim.Adam(mixed, fused=True)
    kernel = DirectKernel(optimizer)
    for _ in range(3):
        for weight in mixed:
            weight.grad = torch.ones_like(weight)
        kernel.step()
    assert kernel.known is None
    assert optimizer.state[mixed[1]]["step"] == 3


@pytest.mark.parametrize("decoupled", [False, True])
def test_decoupled_decay_is_what_its_group_says(decoupled: bool) -> None:
    found = []
    for direct in (True, False):
        weight = nn.Parameter(torch.ones(5))
        optimizer = torch.optim.Adam(
            [weight], weight_decay=0.3, decoupled_weight_decay=decoupled, fused=True
        )
        kernel = DirectKernel(optimizer)
        for _ in range(3):
            weight.grad = torch.ones(5)
            (kernel if direct else optimizer).step()
        found.append(weight.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("count", [1, 16, 235146, BLOCK * TOGETHER])
def test_pieces_are_as_many_as_a_launch_takes(count: int) -> None:
    size = piece_size(count)
    assert size is not None
    assert -(-count // size) <= TOGETHER
    assert size % 16 == 0


def test_large_tensors_and_those_of_a_cpu_stay_whole() -> None:
    assert piece_size(BLOCK * TOGETHER + 1) is None
    flat = torch.zeros(64)
    assert pieces(flat) == [flat]
