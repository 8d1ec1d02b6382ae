"""What is hard to cut into parts: a network, and an optimizer that keeps numbers for lines."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A scalar of its own, which a second forward pass has to find as it was."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(width, width), nn.Parameter(torch.tensor(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.gate * self.linear(inputs).tanh()


class OddParts(nn.Module):
    """Also a weight that is not contiguous, weights in lists in a list, a buffer that grows."""

    history: Tensor

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.start = nn.Parameter(torch.randn(7, size).mul(size**-0.5).t())
        self.layers = nn.ModuleList([Block(7), Block(7)])
        self.turns = nn.ModuleList([nn.ParameterList([torch.eye(7)]) for _ in range(2)])
        self.head = nn.Linear(7, num_classes)
        self.register_buffer("history", torch.zeros(0))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.history = torch.cat([self.history, torch.ones(1)])
        found = inputs.flatten(1) @ self.start
        for layer, turn in zip(self.layers, self.turns, strict=True):
            assert isinstance(turn, nn.ParameterList)
            found = layer(found) @ turn[0]
        outputs: Tensor = self.head(found)
        return outputs


class ByLines(torch.optim.Optimizer):
    """Keeps a number for each row, one for each column, and how often it stepped."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self._step(parameter, parameter.grad.pow(2), group["lr"])

    def _step(self, parameter: Tensor, square: Tensor, lr: float) -> None:
        flat, state = square.dim() < 2, self.state[parameter]
        rows, columns = (square, square) if flat else (square.mean(1), square.mean(0))
        state["count"] = state.get("count", torch.tensor(0.0)) + 1
        state["rows"] = rows + 0.9 * state["rows"] if "rows" in state else rows * 1
        state["columns"] = columns + 0.9 * state["columns"] if "columns" in state else columns * 1
        heights = state["rows"] if flat else state["rows"][:, None]
        scale = (heights + state["columns"]).sqrt() + 1e-3
        parameter.sub_(lr * parameter.grad / scale / float(state["count"]))
