"""Small networks made of a seed and some features that trainers get wrong without a word."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from data.samples import ArrayDataset, Datasets, MapDataset


class Frozen(nn.Module):
    """A backbone as people freeze it: no gradient, fixed statistics, a dropout that rests."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)
        self.rest = nn.Dropout(0.9)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.requires_grad_(False)
        for part in (self.norm, self.rest):
            part.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.rest(self.norm(self.linear(inputs)))
        return out


class Rebound(nn.Module):
    """A running mean and a count that `forward` puts in place of the ones before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().float().mean(0)
            self.seen = self.seen + 1
        return inputs - self.mean


class Conditional(nn.Module):
    """A branch that is taken in every third pass, and first in the second one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Linear(width, width)
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        taken = int(self.turn) % 3 == 1
        if self.training:
            self.turn += 1
        return inputs + torch.tanh(self.branch(inputs)) if taken else inputs


class Shared(nn.Module):
    """A layer that is used twice, and one that has its weight too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(width, width), nn.Linear(width, width)
        self.other.weight = self.one.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.tanh(self.other(torch.tanh(self.one(self.one(inputs)))))


class NonPersistent(nn.Module):
    """Outputs grow with the passes that a buffer outside the state dict has counted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return inputs * (1 + 0.05 * self.passes)


class Hooked(nn.Module):
    """Hooks around the passes of a module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.linear.register_forward_pre_hook(lambda module, args: (args[0] - 0.1,))
        self.linear.register_forward_hook(lambda module, args, out: 1.5 * out)
        self.linear.register_full_backward_hook(
            lambda module, inputs, outputs: tuple(g if g is None else 0.5 * g for g in inputs)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs + torch.tanh(self.linear(inputs))
        return out


class WeightHooked(nn.Module):
    """A hook on a weight, which throws half of its gradient away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.linear.weight.register_hook(lambda gradient: 0.5 * gradient)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.tanh(self.linear(inputs))


class Parametrised(nn.Module):
    """Weights that are computed from others, one of them with buffers that change in training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normed = parametrizations.weight_norm(nn.Linear(width, width))
        self.bounded = parametrizations.spectral_norm(nn.Linear(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = inputs + torch.tanh(self.bounded(torch.tanh(self.normed(inputs))))
        return out


class Normed(nn.Module):
    """Statistics of the batch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.norm(inputs))


class Unused(nn.Module):
    """A weight that nobody asks for: no optimizer may touch it, not even by its decay."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs)


FEATURES: dict[str, Callable[[int], nn.Module]] = {
    "frozen": Frozen,
    "rebound": Rebound,
    "conditional": Conditional,
    "shared": Shared,
    "non-persistent": NonPersistent,
    "hooked": Hooked,
    "weight-hooked": WeightHooked,
    "parametrised": Parametrised,
    "normed": Normed,
    "unused": Unused,
}


def network(seed: int, features: Sequence[str]) -> nn.Module:
    """`(B, 6)` -> `(B, 4)`: a linear layer, the features in that order, another linear layer.

    Weights depend on the seed alone; torch's generator is left as it was.
    """
    width = random.Random(seed).randint(5, 12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [FEATURES[name](width) for name in features]
        return nn.Sequential(nn.Linear(6, width), *parts, nn.Tanh(), nn.Linear(width, 4))


def toy(num_train: int) -> Datasets:
    """Samples `(6,)` of four classes that a linear map tells apart."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 4, generator=generator)

    def draw(count: int) -> ArrayDataset:
        inputs = torch.randn(count, 6, generator=generator)
        return ArrayDataset(inputs, (inputs @ truth).argmax(1))

    return Datasets(train=draw(num_train), test=draw(40), input_shape=(6,), num_classes=4)


def in_turn(data: MapDataset) -> list[int]:
    """An order for `data.order`: every epoch as the samples lie."""
    return list(range(len(data)))
