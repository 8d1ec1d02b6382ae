"""Convolutional layers that several networks share, and checks of a network's arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError


def conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution whose output has the size of its input over the stride, rounded up.

    It has no bias, because batch normalisation follows. Its initial weights keep the variance of
    gradients (He et al., arXiv:1502.01852).
    """
    layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU, and maximum over 2x2 pixels if `pool`.

    Shapes:
        `(B, before, H, W)` -> `(B, after, H, W)`, or `(B, after, H // 2, W // 2)` with `pool`.
    """

    def __init__(self, before: int, after: int, *, pool: bool = False) -> None:
        super().__init__()
        self.conv = conv(before, after, 3)
        self.norm = nn.BatchNorm2d(after)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.pool(F.relu(self.norm(self.conv(inputs))))
        return outputs


def image_size(
    network: str, input_shape: Sequence[int], *, smallest: int = 1, remedy: str = ""
) -> tuple[int, int, int]:
    """Check that the inputs of a network are images that are large enough.

    Args:
        network: The name of the network with its article, for the message.
        input_shape: Shape of one sample.
        smallest: Pixels that each side must have.
        remedy: What to do about smaller images, for the message.

    Returns:
        `(channels, height, width)`.

    Raises:
        InputError: If they are no images, or a side has fewer than `smallest` pixels.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"inputs of {network}",
            given=tuple(input_shape),
            expected="the shape of images (channels, height, width)",
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise InputError(
            f"inputs of {network}",
            given=f"images of {height} x {width} pixels",
            expected=f"{smallest} or more on each side",
            remedy=remedy,
        )
    return channels, height, width


def expect_kwarg(name: str, given: object, holds: bool, expected: str, remedy: str = "") -> None:
    """Raise an InputError about the keyword argument `name` of a network unless `holds`."""
    if not holds:
        raise InputError(f"model.kwargs.{name}", given=given, expected=expected, remedy=remedy)


def is_count(value: object) -> bool:
    """Whether a value is a whole number, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def are_widths(values: object, count: int | None = None) -> bool:
    """Whether values are a list of widths, each 1 or more, of length `count` if that is given."""
    return (
        isinstance(values, Sequence)
        and len(values) >= 1
        and count in (None, len(values))
        and all(map(is_count, values))
    )
