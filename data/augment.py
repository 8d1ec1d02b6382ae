"""Random geometry and mixtures of images, a whole batch at a time, on the device they are on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from configs.schema import AugmentConfig

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""A training batch as the data set gives it: inputs `(B, ...)` -> the same shape, perhaps as
float32; targets `(B,)` -> the same, or `(B, classes)` weights."""


def build_augment(
    config: AugmentConfig, input_shape: tuple[int, ...], num_classes: int | None
) -> Augment:
    """The identity, or random maps of the images and mixtures of them.

    Args:
        config: What is asked for.
        input_shape: Shape of one input.
        num_classes: Number of classes if the task is to tell classes apart, else None.

    Raises:
        InputError: If inputs that are no images are to be moved, or other targets to be mixed.
    """
    moves = any((config.shift, config.rotate, config.scale, config.shear, config.flip))
    if (moves or config.cutmix) and len(input_shape) != 3:
        raise InputError(
            "data.augment",
            given=f"inputs of shape {input_shape}",
            expected="images (channels, height, width)",
            remedy="Leave data.augment out for other data.",
        )
    move = RandomAffine(config) if moves else None
    mix = None
    if config.mixup or config.cutmix:
        if num_classes is None:
            raise InputError(
                "data.augment.mixup and data.augment.cutmix", expected="task.name=classification"
            )
        mix = Mixture(config.mixup, config.cutmix, num_classes)
    if move is None and mix is None:
        return as_is

    def augment(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if move is not None:
            inputs = move(inputs)
        return mix(inputs, targets) if mix is not None else (inputs, targets)

    return augment


def as_is(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return inputs, targets


class Mixture:
    """mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899).

    One proportion per micro-batch; with both, a coin decides. Partners come from the same
    micro-batch. As with dropout the numbers come from the rank's own generator, which a checkpoint
    restores. Nothing waits for the device: boxes are cut with masks.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        self.mixup = mixup
        self.cutmix = cutmix
        self.num_classes = num_classes

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `(B, ...)` and classes `(B,)` -> float32 inputs and weights `(B, classes)`."""
        inputs = inputs.to(torch.float32)
        partners = torch.randperm(len(targets), device=targets.device)
        coin = bool(torch.rand(()) < 0.5)  # on the host
        if self.cutmix and (coin or not self.mixup):
            box = self._box(inputs)
            mixed = torch.where(box, inputs[partners], inputs)
            kept = 1 - box.float().mean()
        else:
            kept = _beta(self.mixup, inputs.device)
            mixed = torch.lerp(inputs[partners], inputs, kept)
        weights = F.one_hot(targets, self.num_classes).to(torch.float32)
        return mixed, torch.lerp(weights[partners], weights, kept)

    def _box(self, inputs: Tensor) -> Tensor:
        """True inside a box `(1, 1, H, W)` whose area is 1 - Beta(cutmix, cutmix) of the image."""
        height, width = inputs.shape[2:]
        side = torch.sqrt(1 - _beta(self.cutmix, inputs.device)) / 2
        centre = torch.rand(2, device=inputs.device)
        rows = (torch.arange(height, device=inputs.device) + 0.5) / height
        columns = (torch.arange(width, device=inputs.device) + 0.5) / width
        inside = ((rows - centre[0]).abs() < side)[:, None] & ((columns - centre[1]).abs() < side)
        return inside[None, None]


def _beta(alpha: float, device: torch.device) -> Tensor:
    """A number from Beta(alpha, alpha), from two Gamma variables of torch's generator."""
    gamma = torch._standard_gamma(torch.full((2,), alpha, device=device))
    return gamma[0] / gamma.sum().clamp(min=torch.finfo(torch.float32).tiny)


class RandomAffine:
    """Shifts, turns, scales, shears and mirrors every image by itself; what comes in is 0.

    The numbers come from torch's default generator of the device, which a checkpoint restores, so a
    continued run sees the same images. Bilinear, pixel centres at (i + 0.5) / size, as in
    torch.nn.functional.grid_sample with align_corners=False.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self.whole_pixels = not (config.rotate or config.scale or config.shear)

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
        shifts = draws[4:6] * config.shift
        if self.whole_pixels:
            # Interpolation would blur the training images, and the test images are sharp.
            most = math.floor(config.shift)
            shifts = ((draws[4:6] + 1) * (most + 0.5)).floor().clamp(max=2 * most) - most
        theta[:, 0, 2] = shifts[0] * (2 / width)
        theta[:, 1, 2] = shifts[1] * (2 / height)
        if config.flip:
            mirrored = torch.rand(size, device=inputs.device) < config.flip
            theta[:, :, 0] *= torch.where(mirrored, -1.0, 1.0)[:, None]
        grid = F.affine_grid(theta, list(inputs.shape), align_corners=False)
        return F.grid_sample(inputs.to(torch.float32), grid, align_corners=False)
