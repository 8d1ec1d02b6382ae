"""Found by tests as `slow_compiling:Net`: a network that one rank takes long to compile.

Nothing is compiled to kernels: its graphs are run as they are.
"""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor

from tests.support.towers import Block, Tower

SECONDS = float(os.environ.get("COMPILE_SECONDS", "0"))
torch.compiler.set_default_backend("eager")


@torch.compiler.assume_constant_result  # called where the graph is made
def compiled(size: int) -> float:
    """Rank 1 has a cold cache for micro-batches of an even size, rank 0 for others."""
    if int(os.environ.get("RANK", "0")) == (size + 1) % 2:
        time.sleep(SECONDS)
    return 1.0


class SlowBlock(Block):
    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            inputs = inputs * compiled(inputs.shape[0])
        return super().forward(inputs)


class Net(Tower):
    """Two equal blocks."""

    def __init__(self) -> None:
        super().__init__(2, SlowBlock)
