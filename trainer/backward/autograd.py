"""The forward and the backward pass of one micro-batch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from data.normalize import Normalize
from trainer.objective.task import Task
from trainer.ranks.precision import Precision


class Passes(Protocol):
    """Whoever computes gradients: autograd, or passes written out."""

    size: int
    """Elements of the flat gradient."""

    def clear(self) -> None:
        """Forget the gradient: the next micro-batch begins a new sum."""
        ...

    def __call__(
        self, inputs: Tensor, targets: Tensor, loss_weight: float
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add the gradient of `loss_weight` times the summed loss of a micro-batch.

        Args:
            inputs: `(B, ...)` as the data set holds them, not normalised.
            targets: `(B,)` int64, or what the task learns from.
            share: Factor of the loss.

        Returns:
            The summed loss (float32) and the summed score of the task (for a classification the
            number of correct predictions, int64), both on the device and without a graph; None of
            a batch whose numbers come with those of a later one.
        """
        ...

    def pop_gradient(self, out: Tensor) -> None:
        """Copy the gradient of all parameters to a flat float32 tensor `(size,)`; then `clear`."""
        ...

    def set_gradient(self, flat: Tensor) -> None:
        """Make a flat tensor, as `pop_gradient` gives it, the gradient of the step."""
        ...


class LossModule(nn.Module):
    """Normalisation, model and loss as one module: one compiled region, one call of DDP."""

    def __init__(
        self, module: nn.Module, *, normalize: Normalize, precision: Precision, task: Task
    ) -> None:
        super().__init__()
        self.module = module
        self.normalize = normalize
        self.precision = precision
        self.task = task

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task's loss in float32 and its score, both summed over the micro-batch."""
        with self.precision.autocast():
            outputs = self.module(self.normalize(inputs))
        return self.task.learn(outputs, targets)


class AutogradPasses:
    """Any model; `model` is a LossModule, compiled or within DDP or neither."""

    def __init__(self, model: nn.Module, module: nn.Module, scaler: torch.amp.GradScaler) -> None:
        self.model = model
        self.scaler = scaler
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(
        self, inputs: Tensor, targets: Tensor, loss_weight: float
    ) -> tuple[Tensor, Tensor]:
        loss, score = self.model(inputs, targets)
        self.scaler.scale(loss * loss_weight).backward()
        return loss.detach(), score

    def pop_gradient(self, out: Tensor) -> None:
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch.cat([part.reshape(-1) for part in parts], out=out)
        self.clear()

    def set_gradient(self, flat: Tensor) -> None:
        parts = torch.split(flat.clone(), [parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
