"""Random geometry for images, a whole batch at a time, on the device the batch is on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from configs.schema import AugmentConfig

Augment = Callable[[Tensor], Tensor]
"""Training inputs `(B, ...)` as the data set gives them -> the same shape, perhaps as float32."""


def build_augment(config: AugmentConfig, input_shape: tuple[int, ...]) -> Augment:
    """The identity, or a random affine map of every image.

    Raises:
        InputError: If inputs that are no images are to be moved.
    """
    if not any((config.shift, config.rotate, config.scale, config.shear)):
        return _as_is
    if len(input_shape) != 3:
        raise InputError(
            "data.augment",
            given=f"inputs of shape {input_shape}",
            expected="images (channels, height, width)",
            remedy="Leave data.augment out for other data.",
        )
    return RandomAffine(config)


def _as_is(inputs: Tensor) -> Tensor:
    return inputs


class RandomAffine:
    """Shifts, turns, scales and shears every image by amounts of its own; what comes in is 0.

    The numbers come from torch's default generator of the device, which a checkpoint restores, so a
    continued run sees the same images. Bilinear, pixel centres at (i + 0.5) / size, as in
    torch.nn.functional.grid_sample with align_corners=False.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, inputs: Tensor) -> Tensor:
        """`(B, C, H, W)` uint8 or float -> float32 of the same shape and range of values."""
        size, _, height, width = inputs.shape
        config = self.config
        draws = torch.rand(6, size, device=inputs.device).mul_(2).sub_(1)
        angle, shear = draws[0] * math.radians(config.rotate), draws[1] * config.shear
        stretch = 1 + draws[2:4] * config.scale
        cosine, sine = torch.cos(angle), torch.sin(angle)
        # Where a pixel comes from, in units of half an image (grid_sample's): x right, y down.
        theta = torch.empty(size, 2, 3, device=inputs.device)
        theta[:, 0, 0] = cosine * stretch[0]
        theta[:, 0, 1] = (shear - sine) * stretch[1]
        theta[:, 1, 0] = sine * stretch[0]
        theta[:, 1, 1] = cosine * stretch[1]
        theta[:, 0, 2] = draws[4] * (2 * config.shift / width)
        theta[:, 1, 2] = draws[5] * (2 * config.shift / height)
        grid = F.affine_grid(theta, list(inputs.shape), align_corners=False)
        return F.grid_sample(inputs.to(torch.float32), grid, align_corners=False)
