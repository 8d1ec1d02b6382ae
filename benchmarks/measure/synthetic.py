"""Data that nobody has to fetch: pictures in the shape of CIFAR-10, and windows of tokens."""

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


def windows(seed: int, context: int, count: int = 512) -> Datasets:
    """`count` windows of tokens to train on and 8 to test on: int64 (N, context), of 96 tokens.

    Each token is the one before it plus the first of its window. They lie in memory as a whole,
    which windows over a text do not: so they can live on a GPU.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(1, 96, (count + 8, 1), generator=generator)
    tokens = first * torch.arange(1, context + 2) % 96
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Datasets(
        train=ArrayDataset(inputs[8:], targets[8:]),
        test=ArrayDataset(inputs[:8], targets[:8]),
        input_shape=(context,),
        num_classes=96,
    )
