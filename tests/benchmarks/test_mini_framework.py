"""The pure-python peer computes what torch computes."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.mini_framework import (
    Adam,
    Dropout,
    Linear,
    Matrix,
    Network,
    cross_entropy,
)

SIZES, BATCH = (7, 6, 5, 4), 9


def tensor(matrix: Matrix) -> Tensor:
    return torch.tensor(matrix, dtype=torch.float64)


def noise(rows: int, columns: int) -> Matrix:
    return [[random.gauss(0, 1) for _ in range(columns)] for _ in range(rows)]


def twin(network: Network) -> list[Tensor]:
    """Leaf tensors with the network's weights and biases."""
    matrices = [matrix for linear in network.linears for matrix in (linear.weight, linear.bias)]
    return [tensor(matrix).requires_grad_() for matrix in matrices]


def torch_logits(network: Network, parameters: list[Tensor], inputs: Tensor) -> Tensor:
    """The same forward pass, with the masks that the network's dropout has just drawn."""
    masks = [tensor(layer.mask) for layer in network.layers if isinstance(layer, Dropout)]
    values = inputs
    for number, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
        values = F.linear(values, weight, bias[0])
        if number < len(masks):
            values = values.relu() * masks[number]
    return values


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_whole_network_has_the_gradients_of_autograd(dropout: float) -> None:
    """Law: loss and every gradient agree with torch to float64 rounding, with dropout too."""
    random.seed(3)
    network = Network(SIZES, dropout)
    inputs, labels = noise(BATCH, SIZES[0]), [random.randrange(SIZES[-1]) for _ in range(BATCH)]
    loss, gradient = cross_entropy(network.forward(inputs, training=True), labels)
    network.backward(gradient)
    parameters = twin(network)
    expected = F.cross_entropy(
        torch_logits(network, parameters, tensor(inputs)), torch.tensor(labels)
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    found = [
        tensor(matrix)
        for linear in network.linears
        for matrix in (linear.weight_gradient, linear.bias_gradient)
    ]
    for ours, theirs in zip(found, parameters, strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-10, atol=1e-12)


def test_adam_takes_the_steps_of_torch() -> None:
    """Law: five steps over changing gradients end at torch's weights."""
    random.seed(5)
    layer = Linear(4, 3)
    leaves = [tensor(layer.weight).requires_grad_(), tensor(layer.bias).requires_grad_()]
    ours, theirs = Adam([layer], 0.01), torch.optim.Adam(leaves, lr=0.01)
    for _ in range(5):
        layer.weight_gradient, layer.bias_gradient = noise(3, 4), noise(1, 3)
        leaves[0].grad, leaves[1].grad = tensor(layer.weight_gradient), tensor(layer.bias_gradient)
        ours.step()
        theirs.step()
    torch.testing.assert_close(tensor(layer.weight), leaves[0].detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(tensor(layer.bias), leaves[1].detach(), rtol=1e-9, atol=1e-12)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    random.seed(2)
    kept = Dropout(0.2).forward([[1.0] * 20_000])[0]
    assert sum(value == 0 for value in kept) / len(kept) == pytest.approx(0.2, abs=0.015)
    assert sum(kept) / len(kept) == pytest.approx(1.0, abs=0.02)
    assert set(kept) == {0.0, 1.25}
