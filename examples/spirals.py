"""Three spirals, and a network that tells them apart: data and model of your own."""

import torch
from torch import nn

from convoy.data.datasets import ArrayDataset, Datasets


def build(seed: int, count: int = 4000) -> Datasets:
    generator = torch.Generator().manual_seed(seed)
    arm = torch.randint(3, (count,), generator=generator)
    radius, noise = torch.rand(2, count, generator=generator)
    angle = 4 * radius + 2.1 * arm + 0.4 * noise
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    train, test = ArrayDataset(points[1000:], arm[1000:]), ArrayDataset(points[:1000], arm[:1000])
    return Datasets(train=train, test=test, input_shape=(2,), num_classes=3)


class Net(nn.Sequential):
    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 64) -> None:
        super().__init__(nn.Linear(input_shape[0], width), nn.ReLU(), nn.Linear(width, num_classes))
