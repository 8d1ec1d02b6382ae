"""What the peers written with torch share: the network, the tensors, the test accuracy."""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.peers.common import DROPOUT, SIZES, Images


def prepare(arguments: argparse.Namespace) -> torch.device:
    """Set threads and seed; returns the device."""
    torch.set_num_threads(arguments.threads_per_rank)
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision(arguments.matmul)
    return torch.device(arguments.device)


def network() -> nn.Sequential:
    """(B, 784) float -> (B, 10) logits."""
    first, second, third, classes = SIZES
    return nn.Sequential(
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(second, third),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(third, classes),
    )


def dataset(images: Images) -> TensorDataset:
    """Normalised floats and labels, as the tutorials hold them in memory."""
    return TensorDataset(torch.from_numpy(images.normalised()), torch.from_numpy(images.labels))


@torch.no_grad()
def test_accuracy(model: nn.Module, images: Images, device: torch.device) -> float:
    """Share of the images that the model gets right."""
    model.eval()
    correct = 0
    for first in range(0, len(images.labels), 1000):
        part = Images(images.pixels[first : first + 1000], images.labels[first : first + 1000])
        inputs, labels = (tensor.to(device) for tensor in dataset(part).tensors)
        correct += int((model(inputs).argmax(1) == labels).sum())
    return correct / len(images.labels)
