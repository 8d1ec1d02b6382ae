"""Tensors in pieces take the steps of the optimizer that has them whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer.explicit.test_flat import OPTIMIZERS
from trainer.explicit.pieces import BLOCK, TOGETHER, PieceStep, piece_size, pieces
from trainer.models import MLP


def pair(name: str) -> list[tuple[nn.Module, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    module = MLP((1, 3, 3), 5, hidden=(70, 60))
    return [(m, OPTIMIZERS[name](m.parameters())) for m in (module, copy.deepcopy(module))]


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def state(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    kept = optimizer.state_dict()["state"]
    return [*module.state_dict().values(), *(v for row in kept.values() for v in row.values())]


@pytest.mark.parametrize("overflows", [None, False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_bits_are_those_of_the_whole_step(name: str, overflows: bool | None) -> None:
    """Law: values, states and step counts, also when a GradScaler has found an overflow."""
    (whole, expected), (cut, optimizer) = pair(name)
    step = PieceStep(optimizer)
    for seed in range(4):
        for module, its in ((whole, expected), (cut, optimizer)):
            set_gradients(module, seed)
            if seed and overflows is not None:
                its.found_inf = torch.tensor(float(overflows))  # type: ignore[attr-defined]
                its.grad_scale = None  # type: ignore[attr-defined]
        expected.step()
        if seed:
            assert step.cut()
        else:
            step.whole()  # makes the state
    mine, theirs = state(cut, optimizer), state(whole, expected)
    for one, other in zip(mine, theirs, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_what_it_does_not_know_is_left_to_the_optimizer() -> None:
    (module, optimizer), _ = pair("adam")
    step = PieceStep(optimizer)
    set_gradients(module, 0)
    assert not step.cut(), "there is no state yet"
    step.whole()
    assert step.cut()
    optimizer.param_groups[0]["amsgrad"] = True
    assert not step.cut()
    optimizer.param_groups[0]["amsgrad"] = False
    first = next(module.parameters())
    assert first.grad is not None
    first.grad = first.grad.t().contiguous().t()
    assert not step.cut(), "a gradient that does not lie as its weight"


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
