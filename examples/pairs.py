"""Two inputs: a model that is called with two arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def build(num_train: int = 963) -> tuple[TensorDataset, TensorDataset]:
    """Two vectors, and whether they point the same way."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, num_train + 400, 6, generator=generator)
    same = ((first * second).sum(1) > 0).long()
    sets = [
        TensorDataset(first[part], second[part], same[part])
        for part in (slice(num_train), slice(num_train, None))
    ]
    return sets[0], sets[1]


class Matcher(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Linear(width, 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.head(self.tower(first) * self.tower(second))
