"""How inputs are normalised: once per batch, on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from data.facts import InputFacts
from data.structures import map_tensors


class Normalize:
    """`(x / scale - mean) / std` in float32, on the device the batch is on.

    Images travel as uint8 and become floats here, once per batch: a quarter of the bytes to copy.
    """

    def __init__(self, data: InputFacts, device: torch.device) -> None:
        self.device = device
        shape = (-1, *[1] * (len(data.input_shape) - 1))
        mean = torch.tensor(data.mean, dtype=torch.float64).reshape(shape)
        std = torch.tensor(data.std, dtype=torch.float64).reshape(shape)
        self.is_plain = (data.mean, data.std, data.scale) == ((0.0,), (1.0,), 1.0)
        self.factor: Tensor | float = (1.0 / (data.scale * std)).to(torch.float32).to(device)
        self.offset: Tensor | float = (-mean / std).to(torch.float32).to(device)
        if (
            len(data.mean) == len(data.std) == 1
        ):  # numbers are a third faster than tensors of one element
            self.factor, self.offset = float(self.factor), float(self.offset)

    def __call__(self, inputs: Any, out: Tensor | None = None) -> Any:
        """Normalised inputs; written into `out`, a float32 tensor of their shape, if given.

        Whole numbers of whose mean and deviation nothing is said, such as token ids, stay as they
        are: float32 has no 2**24 + 1. So do the parts of a structure, but that floats become
        float32 and pictures, uint8 `(B, C, H, W)`, lie between 0 and 1.
        """
        if not isinstance(inputs, Tensor):
            return map_tensors(_part, inputs)
        if out is None:
            if self.is_plain and not inputs.is_floating_point() and inputs.dtype != torch.bool:
                return inputs
            # One tensor instead of three: large ones are taken from the system anew each time.
            out = torch.empty_like(inputs, dtype=torch.float32)
        return out.copy_(inputs).mul_(self.factor).add_(self.offset)


def _part(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    if tensor.dtype == torch.uint8 and tensor.dim() == 4:
        return tensor.to(torch.float32) / 255
    return tensor
