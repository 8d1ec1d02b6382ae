"""Several labels at once: images of shapes, each there or not (BCEWithLogits on an MLP)."""

from __future__ import annotations

import torch

from convoy.data.datasets import ArrayDataset, Datasets

TAGS = ("row", "column", "corner", "centre")


def build(seed: int, num_train: int = 2000) -> Datasets:
    """Noisy 8 x 8 images, uint8 `(N, 1, 8, 8)`; targets `(N, 4)` are 1 where a tag is there."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> ArrayDataset:
        tags = torch.randint(2, (count, len(TAGS)), generator=generator)
        images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator)
        marks = torch.zeros(len(TAGS), 8, 8)
        marks[0, 2], marks[1, :, 5] = 1, 1
        marks[2, :2, :2], marks[3, 3:5, 3:5] = 1, 1
        images += (150 * torch.einsum("nt,thw->nhw", tags.float(), marks).clamp(max=1))[
            :, None
        ].long()
        return ArrayDataset(images.to(torch.uint8), tags)

    return Datasets(
        train=draw(num_train),
        test=draw(500),
        input_shape=(1, 8, 8),
        num_classes=len(TAGS),
        scale=255.0,
        classes=TAGS,
    )
