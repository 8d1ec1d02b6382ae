"""A regression of your own: data, network and loss, found by import path beside polynomial.yaml."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convoy.data.datasets import ArrayDataset, Datasets


def build(seed: int, num_train: int = 2000, noise: float = 0.05) -> Datasets:
    """Noisy values of a cubic: inputs `(N, 2)` float32, targets `(N,)` float32."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> ArrayDataset:
        inputs = torch.rand(count, 2, generator=generator) * 2 - 1
        x, y = inputs.unbind(1)
        values = x**3 - x * y + 0.5 * y
        return ArrayDataset(inputs, values + noise * torch.randn(count, generator=generator))

    # num_classes is the number of outputs that the network is asked for.
    return Datasets(train=draw(num_train), test=draw(500), input_shape=(2,), num_classes=1)


class Net(nn.Module):
    """`(B, 2)` -> `(B, 1)`; the task lays it beside targets `(B,)`."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, num_classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


class WithinNoise:
    """A metric of your own: the part of the predictions that are off by less than 0.1."""

    width = 1
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 0.1).sum().reshape(1)

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        return {"within_noise": sums[0] / count}
