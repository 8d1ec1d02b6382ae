"""A small convolutional network for images of about 28x28 pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from trainer.networks.dropout import Dropout
from trainer.networks.layers import ConvBlock, are_widths, expect_kwarg, image_size


class ConvNet(nn.Module):
    """Two 3x3 convolutions per width, halving the image between widths; then the global average.

    Args:
        input_shape: `(channels, height, width)`, `2 ** (len(widths) - 1)` pixels or more on each
            side.
        num_classes: Number of logits.
        widths: Channels of each pair of convolutions.
        dropout: Probability of dropping an averaged feature before the last layer.

    Shapes:
        `(B, C, H, W)` float -> `(B, num_classes)` logits.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        widths: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        expect_kwarg("widths", widths, are_widths(widths), "a list of widths, each 1 or more")
        expect_kwarg("dropout", dropout, 0 <= dropout < 1, "0 <= dropout < 1")
        channels, _, _ = image_size(
            "a ConvNet",
            input_shape,
            smallest=2 ** (len(widths) - 1),
            remedy="Every entry of model.kwargs.widths but the last halves the image: use fewer.",
        )
        features: list[nn.Module] = []
        for position, width in enumerate(widths):
            features.append(ConvBlock(channels, width))
            features.append(ConvBlock(width, width, pool=position < len(widths) - 1))
            channels = width
        self.features = nn.Sequential(*features)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.features(inputs).mean((2, 3))
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def blocks(self) -> list[nn.Module]:
        """The convolutions, each with what follows it."""
        return list(self.features)
