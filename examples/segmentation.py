"""A class for every pixel, some of them unknown; the mean intersection over union as a metric."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convoy.data.datasets import ArrayDataset

CLASSES = 3


def build(num_train: int = 203) -> tuple[ArrayDataset, ArrayDataset]:
    """Images `(1, 16, 16)` with a bright and a dark square; targets `(16, 16)`, -100 at the rim."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(num_train + 60, 1, 16, 16, generator=generator)
    targets = torch.zeros(len(images), 16, 16, dtype=torch.int64)
    for image, target in zip(images, targets, strict=True):
        for label, value in ((1, 2.0), (2, -2.0)):
            row, column = torch.randint(1, 10, (2,), generator=generator).tolist()
            image[0, row : row + 5, column : column + 5] = value
            target[row : row + 5, column : column + 5] = label
        target[0] = target[-1] = target[:, 0] = target[:, -1] = -100
    train, test = slice(num_train), slice(num_train, None)
    return ArrayDataset(images[train], targets[train]), ArrayDataset(images[test], targets[test])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, CLASSES, 3, padding=1)
    )


class MeanIntersectionOverUnion:
    width = 2 * CLASSES
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found, there = outputs.argmax(1), targets >= 0
        pairs = [((found == c) & there, targets == c) for c in range(CLASSES)]
        return torch.stack([n for a, b in pairs for n in ((a & b).sum(), (a | b).sum())])

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        parts = [
            shared / max(whole, 1) for shared, whole in zip(sums[::2], sums[1::2], strict=True)
        ]
        return {"miou": sum(parts) / CLASSES}
