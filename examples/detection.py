"""Lists of pictures of any size with lists of boxes, and a model that computes its loss itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Sample = tuple[Tensor, dict[str, Tensor]]


class Pictures(torch.utils.data.Dataset):
    """A picture `(1, H, W)` and the boxes in it `(n, 4)`, n of 0 or more."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.seed, self.num_samples = seed, num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        height, width, count = torch.randint(8, 16, (3,), generator=generator).tolist()
        boxes = torch.rand(count % 4, 4, generator=generator)
        return boxes.sum() * torch.ones(1, height, width) / 4, {"boxes": boxes}


def build(num_train: int = 203) -> tuple[Pictures, Pictures]:
    return Pictures(num_train, 0), Pictures(60, 1)


def collate(samples: list[Sample]) -> Any:
    return tuple(zip(*samples, strict=True))


class Detector(nn.Module):
    """As torchvision's: `(pictures, targets)` -> losses; here of how large the boxes are."""

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 4))

    def forward(self, pictures: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
        brightness = torch.stack([picture.mean() for picture in pictures])[:, None]
        total = torch.stack([target["boxes"].sum(0) for target in targets])
        return (self.size(brightness) - total).square().sum(1)


def forward(model: nn.Module, batch: Any) -> Tensor:
    pictures, targets = batch
    return model(list(pictures), list(targets))


def loss(outputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """A sum and its weight: the mean over boxes, of which a picture has any number."""
    return outputs.sum(), outputs.new_tensor(sum(len(target["boxes"]) for target in targets))
