"""Dropout from raw bits is a dropout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainer.networks.dropout import LEVELS, Dropout


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_it_drops_as_often_as_it_says_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    """Four standard deviations of a binomial count; odd sizes, so that some bits are left over."""
    layer, inputs = Dropout(p), torch.full((101, 33), 2.0, dtype=dtype)
    outputs = torch.stack([layer(inputs) for _ in range(100)])
    kept, count = int(outputs.count_nonzero()), outputs.numel()
    assert abs(kept / count - (1 - p)) < 4 * (p * (1 - p) / count) ** 0.5
    scale = LEVELS / (LEVELS - round(p * LEVELS))
    expected = 2.0 * torch.tensor(scale, dtype=dtype)
    assert set(outputs.unique().tolist()) == {0.0, float(expected)}
    assert outputs.dtype is dtype


def test_masks_differ_between_calls_rows_and_columns() -> None:
    layer = Dropout(0.5)
    first, second = (layer(torch.ones(64, 64)) > 0 for _ in range(2))
    assert 0.45 < float((first == second).float().mean()) < 0.55
    for mask in (first, second):
        assert len({tuple(row) for row in mask.tolist()}) == 64
        assert len({tuple(column) for column in mask.t().tolist()}) == 64


def test_the_gradient_goes_where_the_activation_went() -> None:
    inputs = torch.ones(7, 5, requires_grad=True)
    outputs = Dropout(0.4)(inputs)
    outputs.sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, outputs)


def test_the_same_generator_state_drops_the_same() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(9)
        found.append(Dropout(0.3)(torch.ones(40)))
    assert torch.equal(*found)


@pytest.mark.parametrize("layer", [Dropout(0.3).eval(), Dropout(0.0)], ids=["eval", "zero"])
def test_what_drops_nothing_changes_nothing(layer: Dropout) -> None:
    inputs = torch.randn(5, 4)
    assert torch.equal(layer(inputs), inputs)


def outcome(layer: nn.Module) -> Tensor:
    torch.manual_seed(4)
    inputs = torch.ones(50)
    return torch.cat([layer(inputs), inputs])


@pytest.mark.parametrize(("p", "inplace"), [(1.0, False), (0.3, True)])
def test_what_raw_bits_cannot_do_is_left_to_torch(p: float, inplace: bool) -> None:
    assert torch.equal(outcome(Dropout(p, inplace)), outcome(nn.Dropout(p, inplace)))


def test_compiled_and_exported_it_is_torchs() -> None:
    layer = Dropout(0.3)
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    assert torch.equal(outcome(compiled), outcome(nn.Dropout(0.3)))
    exported = torch.export.export(layer.eval(), (torch.ones(3),)).module()
    assert torch.equal(exported(torch.ones(3)), torch.ones(3))
