"""The multilayer perceptron: shapes, sizes, and the order of its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainer.networks.mlp import MLP


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 3, 2)])
@pytest.mark.parametrize("input_shape", [(6,), (1, 4, 3), (3, 2, 2)])
def test_an_mlp_turns_samples_of_any_shape_into_logits(
    input_shape: tuple[int, ...], hidden: tuple[int, ...], dropout: float, batch_norm: bool
) -> None:
    model = MLP(input_shape, 5, hidden=hidden, dropout=dropout, batch_norm=batch_norm)
    assert model(torch.randn(4, *input_shape)).shape == (4, 5)


def test_the_reference_mlp_has_as_many_parameters_as_its_layers_say() -> None:
    model = MLP((1, 28, 28), 10)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [256, 128, 10]
    assert sum(parameter.numel() for parameter in model.parameters()) == 235_146


def test_dropout_and_batch_norm_stand_behind_every_hidden_layer_and_nowhere_else() -> None:
    def kinds(**kwargs: Any) -> list[str]:
        return [type(m).__name__ for m in MLP((4,), 2, hidden=(3, 3), **kwargs).layers]

    hidden = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds(dropout=0.1, batch_norm=True) == ["Flatten", *hidden, *hidden, "Linear"]
    assert kinds() == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
