"""How inputs are normalised: once per batch, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from data.facts import InputFacts


class Normalize:
    """`(x / scale - mean) / std` in float32, on the device the batch is on.

    Images travel as uint8 and become floats here, once per batch: a quarter of the bytes to copy.
    """

    def __init__(self, data: InputFacts, device: torch.device) -> None:
        shape = (-1, *[1] * (len(data.input_shape) - 1))
        mean = torch.tensor(data.mean, dtype=torch.float64).reshape(shape)
        std = torch.tensor(data.std, dtype=torch.float64).reshape(shape)
        self.factor: Tensor | float = (1.0 / (data.scale * std)).to(torch.float32).to(device)
        self.offset: Tensor | float = (-mean / std).to(torch.float32).to(device)
        if (
            len(data.mean) == len(data.std) == 1
        ):  # numbers are a third faster than tensors of one element
            self.factor, self.offset = float(self.factor), float(self.offset)

    def __call__(self, inputs: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalised inputs; written into `out`, a float32 tensor of their shape, if given."""
        if out is None:
            return inputs.to(torch.float32) * self.factor + self.offset
        return out.copy_(inputs).mul_(self.factor).add_(self.offset)
