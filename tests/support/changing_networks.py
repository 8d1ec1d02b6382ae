"""Networks whose parameters do not all learn in every step."""

from __future__ import annotations

import random
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.odd_networks import Base


class LateBranch(Base):
    """A branch that is used from a pass on, counted in a buffer: its first gradient comes late."""

    def __init__(self, late: int = 3) -> None:
        super().__init__()
        self.branch, self.late = nn.Linear(16, 16), late
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(inputs))
        if int(self.passes) >= self.late:
            hidden = hidden + self.branch(hidden)
        if self.training:
            self.passes += 1
        out: Tensor = self.c(torch.tanh(self.b(hidden)))
        return out


class EarlyBranch(Base):
    """A branch that is left out from a pass on."""

    def __init__(self, until: int = 3) -> None:
        super().__init__()
        self.branch, self.until = nn.Linear(16, 16), until
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(inputs))
        if int(self.passes) < self.until:
            hidden = hidden + self.branch(hidden)
        if self.training:
            self.passes += 1
        out: Tensor = self.c(torch.tanh(self.b(hidden)))
        return out


class HiddenBranch(EarlyBranch):
    """The same, counted where no trial looks."""

    def __init__(self, until: int = 3) -> None:
        super().__init__(until)
        self.seen = [0]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(inputs))
        if self.seen[0] < 2 * self.until:
            hidden = hidden + self.branch(hidden)
        self.seen[0] += self.training
        out: Tensor = self.c(torch.tanh(self.b(hidden)))
        return out


class Fussy(Base):
    """Refuses zeros, as a detector refuses boxes without an area."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not np.any(inputs.numpy()):
            raise AssertionError("nothing in it")
        out: Tensor = self.c(torch.tanh(self.b(torch.tanh(self.a(inputs)))))
        return out


class LayerDrop(Base):
    """A layer is left out now and then, as the generator of `kind` says."""

    def __init__(self, kind: str = "python") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(inputs))
        draw = {"python": random.random, "numpy": np.random.rand, "torch": lambda: torch.rand(())}
        if not (self.training and draw[self.kind]() < 0.05):
            hidden = hidden + torch.tanh(self.b(hidden))
        out: Tensor = self.c(hidden)
        return out


class Counted(LayerDrop):
    """A layer is left out of some passes, counted in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        hidden = torch.tanh(self.a(inputs))
        if self.passes % 5:
            hidden = hidden + torch.tanh(self.b(hidden))
        out: Tensor = self.c(hidden)
        return out


class Unfreezing(Base):
    """Trains its first layer from a pass on, as people do by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += self.training
        if self.passes > 4:
            self.a.requires_grad_(True)
        return super().forward(inputs)


class Normed(Base):
    """A batch norm in front, to be frozen with its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.norm(inputs))


class KeepsItsNormsInEval(Normed):
    """Its own `train`, as torchvision's and mmdetection's frozen backbones have it."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm.eval()
        return self
