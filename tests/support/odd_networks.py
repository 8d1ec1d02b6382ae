"""Networks, data and losses that people write and trainers get wrong without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data.datasets import ArrayDataset, Datasets


def toy(num_train: int = 130, num_test: int = 40, bad: dict[str, int] | None = None) -> Datasets:
    """Samples `(6,)` of four classes that a linear map tells apart; a run of 64, 64 and 2.

    `bad` plants a NaN in one sample of a set, by the set's name.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 4, generator=generator)

    def draw(count: int) -> ArrayDataset:
        inputs = torch.randn(count, 6, generator=generator)
        return ArrayDataset(inputs, (inputs @ truth).argmax(1))

    sets = {"train": draw(num_train), "test": draw(num_test)}
    for name, index in (bad or {}).items():
        sets[name].inputs[index, 2] = torch.nan
    return Datasets(train=sets["train"], test=sets["test"], input_shape=(6,), num_classes=4)


class Base(nn.Module):
    """Three layers and two tanhs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.c(torch.tanh(self.b(torch.tanh(self.a(inputs)))))
        return out


class Breaking(Base):
    """Looks at a number in the middle, where a graph of torch.compile ends."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs if float(inputs.sum()) < 1e9 else -inputs)


class BadGradient(Base):
    """The gradient of one bias is NaN in one training pass; all losses up to it are finite."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.passes = at, 0

    def forward(self, inputs: Tensor) -> Tensor:
        out = super().forward(inputs)
        if self.training:
            self.passes += 1
            if self.passes == self.at:
                out.register_hook(lambda gradient: gradient * torch.nan)
        return out


class Rebound(Base):
    """A running mean put in place of the one before, as many write it, instead of changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs):
            self.mean = 0.9 * self.mean + 0.1 * inputs.detach().mean(0)
        return super().forward(inputs - self.mean)


class InPlace(Rebound):
    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and len(inputs):
            self.mean.copy_(0.9 * self.mean + 0.1 * inputs.detach().mean(0))
        return Base.forward(self, inputs - self.mean)


class Growing(Base):
    """A buffer that changes its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.cache = torch.ones(len(self.cache) + 1)
        return super().forward(inputs)


class Masked(Base):
    """A buffer that is infinite on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3,), -torch.inf))


class FrozenParts(Base):
    """Batch norm with fixed statistics and a dropout that rests, as around a frozen backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rest = nn.BatchNorm1d(16).eval(), nn.Dropout(0.9).eval()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.c(self.rest(torch.tanh(self.norm(self.a(inputs)))))
        return out


class Pretrained(Base):
    """Comes wholly in eval mode, as `from_pretrained` gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.eval()


class Counting(Base):
    """Outputs grow with the passes that a buffer outside the state dict has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return super().forward(inputs) * (1 + 0.1 * self.passes)


class Remembering(Base):
    """The same counted in Python, and given to the state dict by `get_extra_state`."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return super().forward(inputs) * (1 + 0.1 * self.passes)

    def get_extra_state(self) -> dict[str, Any]:
        return {"passes": self.passes}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.passes = state["passes"]


class Unsaveable(Remembering):
    def get_extra_state(self) -> dict[str, Any]:
        return {"passes": self.passes, "kind": Base}


def stacked() -> nn.Sequential:
    """Plain layers, whose passes may be written out."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


def resting() -> nn.Module:
    model = stacked()
    model[2].eval()
    return model


def hooked() -> nn.Module:
    """Half of a gradient is thrown away by a hook on the tensor."""
    model = stacked()
    model[0].weight.register_hook(lambda gradient: 0.5 * gradient)
    return model


def accumulating() -> nn.Module:
    model = stacked()
    model[0].weight.register_post_accumulate_grad_hook(lambda weight: None)
    return model


def patched() -> nn.Module:
    """A layer whose `forward` is another one on this instance, as LoRA is often put in."""
    model = stacked()
    layer, more = model[0], nn.Parameter(torch.zeros(16))
    plain = layer.forward
    layer.forward = lambda inputs: plain(inputs) + more  # type: ignore[method-assign]
    return model


class LossOfMine:
    """A metric whose value has the name of a built-in one."""

    width = 1
    higher_is_better = True
    name = "loss"

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([(outputs.argmax(1) == targets).sum()])

    def compute(self, sums: list[float], count: int) -> dict[str, float]:
        return {self.name: 100.0 * sums[0] / count}


class AccuracyOfMine(LossOfMine):
    name = "accuracy"


class CountOfMine(LossOfMine):
    name = "count"


class FlatView(Base):
    """Reshapes with -1, which an empty batch cannot answer."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.view(inputs.size(0), -1))


class TupleInTraining(Base):
    def forward(self, inputs: Tensor) -> Any:
        out = super().forward(inputs)
        return (out, out) if self.training else out


class Complex(Base):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


WEIGHTS = torch.tensor([0.1, 1.0, 2.0, 5.0])


def weighted_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    """As everybody writes it: divided by the weights of the batch, not by its samples."""
    return nn.functional.cross_entropy(outputs, targets, weight=WEIGHTS.to(outputs.dtype))


def weighted_float32(outputs: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, weight=WEIGHTS, reduction=reduction)


def summed_up(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets).mul(len(targets))


def plain_mean(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets)


weighted_module = nn.CrossEntropyLoss(weight=WEIGHTS)


class WeightedModule(nn.CrossEntropyLoss):
    """With weights in a buffer, made with the reduction that it is asked for."""

    def __init__(self, reduction: str) -> None:
        super().__init__(weight=WEIGHTS, reduction=reduction)


class Learning(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs * self.scale.exp(), targets)


def toy_numbers(num_train: int = 130, shape: tuple[int, ...] = ()) -> Datasets:
    """Numbers to predict, of a shape."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> ArrayDataset:
        inputs = torch.randn(count, 6, generator=generator)
        return ArrayDataset(inputs, torch.randn(count, *shape, generator=generator))

    return Datasets(train=draw(num_train), test=draw(40), input_shape=(6,), num_classes=4)


def ignored() -> Datasets:
    """A label that stands for none."""
    data = toy()
    assert isinstance(data.train, ArrayDataset)
    data.train.targets[7] = -100
    return data
