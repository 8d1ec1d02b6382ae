"""The fast residual network of David Page's "How to Train Your ResNet" (2018).

It reached 94 % on CIFAR-10 in 24 epochs at DAWNBench: https://github.com/davidcpage/cifar10-fast.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainer.networks.layers import ConvBlock, are_widths, expect_kwarg, image_size


class Residual(nn.Module):
    """Two convolutions beside the identity: `(B, width, H, W)` -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvBlock(width, width)
        self.second = ConvBlock(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.second(self.first(inputs))
        return outputs


class ResNet9(nn.Module):
    """Four convolutions that widen, residual blocks after the second and the last of them.

    Args:
        input_shape: `(channels, height, width)`, 8 pixels or more on each side.
        num_classes: Number of logits.
        widths: Channels of the four convolutions.
        logit_scale: Factor of the logits; with 1 the network is too sure of itself early on.

    Shapes:
        `(B, C, H, W)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        logit_scale: float = 0.125,
    ) -> None:
        super().__init__()
        expect_kwarg("widths", widths, are_widths(widths, 4), "four widths, each 1 or more")
        expect_kwarg("logit_scale", logit_scale, logit_scale > 0, "a positive factor")
        channels, _, _ = image_size(
            "a ResNet9",
            input_shape,
            smallest=8,
            remedy="It halves the image three times; resnet18 takes images of any size.",
        )
        first, second, third, last = widths
        self.features = nn.Sequential(
            ConvBlock(channels, first),
            ConvBlock(first, second, pool=True),
            Residual(second),
            ConvBlock(second, third, pool=True),
            ConvBlock(third, last, pool=True),
            Residual(last),
        )
        self.head = nn.Linear(last, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.features(inputs).amax((2, 3))
        logits: Tensor = self.head(features) * self.logit_scale
        return logits

    def blocks(self) -> list[nn.Module]:
        """Convolutions and residual blocks, in the order in which they are applied."""
        return list(self.features)
