"""Models and data sets with one fault each, named by import path: what the doctor must find."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.datasets import ArrayDataset, Datasets
from trainer.networks.mlp import MLP

CLASSES = 5
SHAPE = (1, 9, 7)


class Net(MLP):
    """An MLP with a fault in its last layer, in its weights or in its forward pass."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        fault: str = "",
        hidden: Sequence[int] = (24, 16),
    ) -> None:
        outputs = num_classes - (fault == "too few outputs")
        super().__init__(input_shape, outputs, hidden)
        self.fault = fault
        first, last = self.layers[1], self.layers[-1]
        if fault == "frozen":
            first.requires_grad_(False)
        elif fault == "unused":
            self.unused = nn.Linear(3, 3)
        elif fault == "plain tensor":
            self.scale = torch.ones(outputs)
        elif fault == "plain list":
            self.hidden = [nn.Linear(num_classes, num_classes)]
        elif fault == "dead":
            nn.init.constant_(first.bias, -1000.0)
        elif fault == "confident":
            with torch.no_grad():
                last.weight.mul_(100)
        elif fault == "unseeded":
            noise = np.frombuffer(os.urandom(last.bias.numel()), np.uint8) / 2560
            last.bias.data.add_(torch.from_numpy(noise.astype(np.float32)))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.fault == "detached":
            hidden = self.layers[:2](inputs).detach()
            return self.layers[2:](hidden)
        if self.fault == "shape":
            return self.layers[1:](inputs)
        if self.fault == "mixes samples":
            inputs = inputs - inputs.mean(0)
        logits = super().forward(inputs)
        if self.fault in ENDS:
            return ENDS[self.fault](logits)
        return logits


ENDS: dict[str, Any] = {
    "softmax": lambda logits: logits.softmax(1),
    "log-softmax": lambda logits: F.log_softmax(logits, 1),
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "tuple": lambda logits: (logits, logits),
    "always dropout": lambda logits: F.dropout(logits, 0.5),
    "left behind": lambda logits: logits * torch.ones(logits.shape[1], device="cpu"),
    "nan": lambda logits: logits - (logits.detach() - logits.detach().max()).log().sum(),
    "overflow": lambda logits: (logits * 300 + 60_000) * 4 / 1200,
}


class Deep(nn.Module):
    """Many layers of one width with an activation, their weights scaled by `gain`."""

    def __init__(
        self, num_classes: int, activation: str = "relu", depth: int = 8, gain: float = 1.0
    ) -> None:
        super().__init__()
        widths = [int(np.prod(SHAPE)), *[32] * depth]
        self.hidden = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.head = nn.Linear(widths[-1], num_classes)
        self.activation = activation
        with torch.no_grad():
            for layer in self.hidden:
                layer.weight.mul_(gain)

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs.flatten(1)
        for layer in self.hidden:
            features = getattr(torch, self.activation)(layer(features))
        return self.head(features)


def healthy(num_train: int = 600, num_test: int = 200) -> Datasets:
    """Patterns in noise that a small network learns easily, normalised."""
    random = np.random.default_rng(0)
    patterns = random.normal(0, 0.7, (CLASSES, *SHAPE))
    splits = []
    for count in (num_train, num_test):
        labels = random.integers(0, CLASSES, count)
        inputs = patterns[labels] + random.normal(0, 0.7, (count, *SHAPE))
        splits.append(
            ArrayDataset(torch.from_numpy(inputs).float(), torch.from_numpy(labels).long())
        )
    return Datasets(train=splits[0], test=splits[1], input_shape=SHAPE, num_classes=CLASSES)


def changed(split: ArrayDataset, inputs: Tensor | None = None, targets: Any = None) -> ArrayDataset:
    return ArrayDataset(
        split.inputs if inputs is None else inputs, split.targets if targets is None else targets
    )


def rebuilt(data: Datasets, **parts: Any) -> Datasets:
    known = {"train": data.train, "test": data.test, "input_shape": SHAPE, "num_classes": CLASSES}
    return Datasets(**(known | parts))


def raw_pixels() -> Datasets:
    data = healthy()
    train, test = (
        changed(split, (split.inputs * 40 + 128).clamp(0, 255).round())
        for split in (data.train, data.test)
    )
    return rebuilt(data, train=train, test=test)


def tiny_inputs() -> Datasets:
    data = healthy()
    train, test = (changed(split, split.inputs * 0.01) for split in (data.train, data.test))
    return rebuilt(data, train=train, test=test)


def shuffled() -> Datasets:
    data = healthy()
    order = torch.randperm(600, generator=torch.Generator().manual_seed(1))
    return rebuilt(data, train=changed(data.train, targets=data.train.targets[order]))


def off_by_one() -> Datasets:
    """Labels one row behind their inputs, in both splits."""
    data = healthy()
    train, test = (changed(s, targets=s.targets.roll(1)) for s in (data.train, data.test))
    return rebuilt(data, train=train, test=test)


def renumbered_test() -> Datasets:
    data = healthy()
    return rebuilt(data, test=changed(data.test, targets=(data.test.targets + 1) % CLASSES))


def missing_class() -> Datasets:
    data = healthy()
    keep = data.train.targets != 3
    return rebuilt(data, train=ArrayDataset(data.train.inputs[keep], data.train.targets[keep]))


def imbalanced() -> Datasets:
    data = healthy()
    keep = (data.train.targets == 0) | (torch.arange(600) % 20 == 0)
    return rebuilt(data, train=ArrayDataset(data.train.inputs[keep], data.train.targets[keep]))


def copies() -> Datasets:
    data = healthy()
    inputs, targets = data.test.inputs.clone(), data.test.targets.clone()
    inputs[:20], targets[:20] = data.train.inputs[:20], data.train.targets[:20]
    return rebuilt(data, test=ArrayDataset(inputs, targets))


def contradictions() -> Datasets:
    data = healthy()
    inputs = data.train.inputs.clone()
    inputs[300:310] = inputs[(data.train.targets == 0).nonzero()[0]]
    return rebuilt(data, train=changed(data.train, inputs))


def nan_input() -> Datasets:
    data = healthy()
    inputs = data.train.inputs.clone()
    inputs[17, 0, 3, 3] = float("nan")
    return rebuilt(data, train=changed(data.train, inputs))


def blank() -> Datasets:
    data = healthy()
    inputs = data.train.inputs.clone()
    inputs[::10] = 0
    return rebuilt(data, train=changed(data.train, inputs))


def constant() -> Datasets:
    data = healthy()
    return rebuilt(data, train=changed(data.train, torch.ones_like(data.train.inputs)))


def _measured(data: Datasets) -> dict[str, Any]:
    """The same as vectors of 63 features, one called weight and one called size."""
    train, test = (changed(split, split.inputs.flatten(1)) for split in (data.train, data.test))
    names = [f"f{number}" for number in range(train.inputs.shape[1])]
    names[3], names[5] = "weight", "size"
    shape = tuple(train.inputs.shape[1:])
    return {"train": train, "test": test, "input_shape": shape, "features": tuple(names)}


def uneven_features() -> Datasets:
    """A table as it is written down: grams beside metres."""
    known = _measured(healthy())
    for name in ("train", "test"):
        known[name].inputs[:, 3] *= 300
        known[name].inputs[:, 5] *= 0.1
    return rebuilt(healthy(), **known)


def constant_feature() -> Datasets:
    known = _measured(healthy())
    known["train"].inputs[:, 5] = 2.5
    return rebuilt(healthy(), **known)


def from_one() -> Datasets:
    """Classes numbered from 1."""
    data = healthy()
    train, test = (changed(split, targets=split.targets + 1) for split in (data.train, data.test))
    return rebuilt(data, train=train, test=test)


class Slow:
    """Takes its time for every sample."""

    num_classes = CLASSES

    def __init__(self, split: ArrayDataset) -> None:
        self.split = split

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        time.sleep(0.002)
        return self.split.inputs[index], int(self.split.targets[index])


def slow() -> tuple[Slow, Slow]:
    data = healthy()
    return Slow(data.train), Slow(data.test)


def different() -> Datasets:
    """Another data set in every process."""
    data = healthy()
    random = np.random.default_rng(int.from_bytes(os.urandom(8), "big"))
    noise = torch.from_numpy(random.normal(0, 0.1, (600, *SHAPE))).float()
    return rebuilt(data, train=changed(data.train, data.train.inputs + noise))
