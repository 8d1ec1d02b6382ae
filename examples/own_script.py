"""A trainer you can call: `python examples/own_script.py`, or with torchrun on several ranks."""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset, random_split

from convoy import fit


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.layers(points)


if __name__ == "__main__":
    torch.manual_seed(0)  # the data must be the same at every start, and on every rank
    points = torch.rand(3000, 2) * 2 - 1
    inside = (points.norm(dim=1) < 0.7).long()
    train_set, test_set = random_split(TensorDataset(points, inside), [2500, 500])
    run = fit(
        model=Net(width=32),
        data=(train_set, test_set),
        loss=F.cross_entropy,
        optimizer="adamw",
        lr=1e-2,
        epochs=20,
        name="own_script",
        **dict(argument.split("=") for argument in sys.argv[1:]),  # any key: output_dir=/tmp/runs
    )
    print(run)
