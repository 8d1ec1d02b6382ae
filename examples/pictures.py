"""Small pictures in four classes, for networks of timm and torchvision."""

from __future__ import annotations

import torch

from convoy.data.datasets import ArrayDataset, Datasets


def build(num_train: int = 203, size: int = 32) -> Datasets:
    """uint8 `(N, 3, size, size)`, bright in one of the four quarters."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 90, (num_train + 60, 3, size, size), generator=generator)
    labels = torch.randint(4, (len(images),), generator=generator)
    half = size // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 120
    images = images.to(torch.uint8)
    train, test = slice(num_train), slice(num_train, None)
    return Datasets(
        train=ArrayDataset(images[train], labels[train]),
        test=ArrayDataset(images[test], labels[test]),
        input_shape=(3, size, size), num_classes=4, scale=255.0, mean=(0.3,), std=(0.25,),
    )  # fmt: skip
