"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of a model whose weights follow the trained ones slowly.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that a short run is not dominated by its initial weights.
    Buffers (batch-norm statistics) are copied as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int) -> None:
        """Take one step towards `model`, after its `num_updates`-th optimizer step."""
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        averaged: list[Tensor] = [parameter.data for parameter in self.module.parameters()]
        current: list[Tensor] = [parameter.data for parameter in model.parameters()]
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
