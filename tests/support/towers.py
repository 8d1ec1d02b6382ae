"""Equal blocks on top of each other, for torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual layer, whose graph may break."""

    def __init__(self, width: int, *, breaks: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.breaks = breaks

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.linear(inputs)
        if self.breaks:
            torch._dynamo.graph_break()
        return inputs + torch.tanh(hidden)


class Tower(nn.Module):
    """So many equal blocks; inputs (n, 6), outputs (n, 4)."""

    def __init__(self, depth: int, block: Callable[[int], nn.Module] = Block) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)  # a block's input has a gradient then, in all of them
        self.blocks = nn.ModuleList(block(6) for _ in range(depth))
        self.head = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = self.stem(inputs)
        for block in self.blocks:
            inputs = block(inputs)
        outputs: Tensor = self.head(inputs)
        return outputs
