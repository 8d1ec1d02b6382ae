"""A small network of blocks with everything that has a state of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Layer(nn.Module):
    """A residual layer with everything that has a state of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.BatchNorm1d(4 * width),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(4 * width, width),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.inner(inputs)
        return outputs


class Deep(nn.Module):
    """Blocks of layers, and a parameter without a dimension."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.stages = nn.ModuleList(
            [nn.Sequential(Layer(8), nn.ReLU()), nn.ModuleList([Layer(8), Layer(8)])]
        )
        self.last = nn.Linear(8, 3)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        for part in self.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.momentum = momentum

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for stage in self.stages:
            for layer in stage:
                hidden = layer(hidden)
        outputs: Tensor = self.last(hidden) * self.temperature
        return outputs
