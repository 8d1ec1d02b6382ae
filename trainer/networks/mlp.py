"""The multilayer perceptron: fully connected layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from trainer.networks.dropout import Dropout
from trainer.networks.layers import expect_kwarg, is_count


class MLP(nn.Module):
    """Fully connected layers with ReLU and dropout between them.

    Args:
        input_shape: Shape of one sample; it is flattened.
        num_classes: Number of logits.
        hidden: Width of each hidden layer.
        dropout: Probability of dropping an activation, 0 <= dropout < 1.
        batch_norm: Batch normalisation before each ReLU.

    Shapes:
        `(B, *input_shape)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        are_widths = all(map(is_count, hidden))
        expect_kwarg("hidden", hidden, are_widths, "a list of widths, each 1 or more")
        expect_kwarg("dropout", dropout, 0 <= dropout < 1, "0 <= dropout < 1")
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(widths):
            layers.append(nn.Linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(Dropout(dropout))
        layers.append(nn.Linear(widths[-1], num_classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits
