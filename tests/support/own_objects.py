"""What a user hands to `fit`: a network, data sets, losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trainer.fit import Outcome, fit


class Net(nn.Module):
    """A network with dropout: continuing it takes the random generators as well."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 3)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def net(seed: int = 0, width: int = 16) -> Net:
    """A network with weights drawn under a seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(width)


def sets(seed: int = 0) -> tuple[TensorDataset, TensorDataset]:
    """113 samples to train on and 31 to test on, in three classes."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(144, 5, generator=generator)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    return TensorDataset(inputs[:113], labels[:113]), TensorDataset(inputs[113:], labels[113:])


def own_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def train(folder: Any, **more: Any) -> Outcome:
    """A quick run of these objects under `folder`, unless told otherwise."""
    arguments: dict[str, Any] = {
        "model": net(),
        "data": sets(),
        "loss": own_loss,
        "optimizer": "adamw",
        "lr": 0.01,
        "epochs": 3,
        "batch_size": 16,
        "name": "own",
        "output_dir": str(folder),
        "parallel": {"device": "cpu"},
        "logging": {"every_steps": 1},
    }
    return fit(**(arguments | more))
