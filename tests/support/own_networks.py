"""Networks of a user's that do in a step what a recording would or would not do again."""

from __future__ import annotations

import os
import random

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Can be recorded; its layers are none that passes are written out for."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 5)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


class Counting(Plain):
    """Counts its passes in plain Python, and one day acts on it."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(inputs) * (2.0 if self.passes > 1000 else 1.0)


class Drawing(Plain):
    """Draws a number on the host."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1 + random.random())


class Replacing(Plain):
    """Puts another tensor in the place of a buffer, which nobody who knows the old one sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.mean = (self.mean + outputs.detach().mean(0)) / 2
        return outputs + self.mean


class Asking(Plain):
    """Asks the device for a number."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs if float(outputs.detach().sum()) < 1e9 else outputs * 2


class Noisy(Plain):
    """Adds in no fixed order, as some kernels do: about a millionth is never the same."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        noise = torch.frombuffer(bytearray(os.urandom(outputs.numel())), dtype=torch.uint8)
        return outputs * (1 + noise.view_as(outputs) * 1e-8)
