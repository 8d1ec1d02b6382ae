"""The forward and the backward pass of one micro-batch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from configs.errors import InputError
from data.normalize import Normalize
from data.samples import Batch
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
        """Make a flat tensor, as `pop_gradient` gives it, the gradient of the step.

        A parameter without any gradient in what was popped has none: its optimizer leaves it alone.
        """
        ...


class LossModule(nn.Module):
    """Normalisation, model and loss as one module: one compiled region, one call of DDP."""

    def __init__(
        self,
        module: nn.Module,
        *,
        normalize: Normalize,
        precision: Precision,
        task: Task,
        example: Batch | None = None,
    ) -> None:
        """
        Args:
            module: The raw model.
            normalize: Turns inputs as the data set holds them into what it takes.
            precision: The type it computes in.
            task: Loss and score.
            example: One sample as a batch, which stands in for a batch without samples; None:
                zeros do.
        """
        super().__init__()
        self.example = example
        self.module = module
        self.normalize = normalize
        self.precision = precision
        self.task = task

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The task's loss in float32 and its score, both summed over the micro-batch.

        A rank may have no sample in the last batch of an epoch, and still has to take part in its
        collectives: it computes another sample and multiplies by 0.
        """
        empty = not len(targets)
        if empty:
            inputs, targets = self._stand_in(inputs, targets)
        with self.precision.autocast():
            outputs = self.module(self.normalize(inputs))
        if not isinstance(outputs, Tensor):
            raise InputError(
                "outputs of the model while it trains",
                given=type(outputs).__name__,
                expected=f"a tensor as in an evaluation: {self.task.outputs}",
            )
        loss, score = self.task.learn(outputs, targets)
        return (loss * 0, score * 0) if empty else (loss, score)

    def _stand_in(self, inputs: Tensor, targets: Tensor) -> Batch:
        if self.example is None:
            return inputs.new_zeros(1, *inputs.shape[1:]), targets.new_zeros(1, *targets.shape[1:])
        return self.example[0].to(inputs), self.example[1].to(targets)


class AutogradPasses:
    """Any model; `model` is a LossModule, compiled or within DDP or neither."""

    def __init__(self, model: nn.Module, module: nn.Module, scaler: torch.amp.GradScaler) -> None:
        self.model = model
        self.scaler = scaler
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.used = [False] * len(self.parameters)
        """Which of them had a gradient when it was popped, since one was set."""

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
        self.used = [
            u or p.grad is not None for u, p in zip(self.used, self.parameters, strict=True)
        ]
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch.cat([part.reshape(-1) for part in parts], out=out)
        self.clear()

    def set_gradient(self, flat: Tensor) -> None:
        parts = torch.split(flat.clone(), [parameter.numel() for parameter in self.parameters])
        for parameter, part, used in zip(self.parameters, parts, self.used, strict=True):
            parameter.grad = part.view_as(parameter) if used else None
        self.used = [False] * len(self.parameters)
