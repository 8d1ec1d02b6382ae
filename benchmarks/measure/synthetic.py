"""Pictures that nobody has to fetch, in the shape of CIFAR-10."""

from __future__ import annotations

import torch

from data.datasets import ArrayDataset, Datasets


def pictures(seed: int, count: int = 10_000) -> Datasets:
    """`count` pictures of noise to train on and 64 to test on: uint8 (N, 3, 32, 32), ten classes.

    The top left corner of a picture tells its class.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count + 64,), generator=generator)
    pixels = torch.randint(256, (count + 64, 3, 32, 32), generator=generator, dtype=torch.uint8)
    pixels[:, :, :8, :8] = (labels * 25).to(torch.uint8)[:, None, None, None]
    return Datasets(
        train=ArrayDataset(pixels[64:], labels[64:]),
        test=ArrayDataset(pixels[:64], labels[:64]),
        input_shape=(3, 32, 32),
        num_classes=10,
        mean=(0.5,),
        std=(0.29,),
        scale=255.0,
    )
