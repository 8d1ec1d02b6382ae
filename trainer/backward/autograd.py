"""The forward and the backward pass of one micro-batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.errors import InputError
from data.normalize import Normalize
from data.samples import Batch, Example
from trainer.networks.calling import Call, call_whole
from trainer.objective.task import Task
from trainer.ranks.precision import Precision

Sums = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of a micro-batch, on the device and without a graph: the summed loss (float32), the summed score
of the task (for a classification the number of correct predictions, int64), and what both are
divided by if that is not the number of samples. Loss and score are None where they come with those
of a later micro-batch."""


class Passes(Protocol):
    """Whoever computes gradients: autograd, or passes written out."""

    size: int
    """Elements of the flat gradient."""

    def clear(self) -> None:
        """Forget the gradient: the next micro-batch begins a new sum."""
        ...

    def __call__(self, batch: Batch, loss_weight: float) -> Sums:
        """Add the gradient of `loss_weight` times the summed loss of a micro-batch.

        Args:
            batch: Inputs `(B, ...)` as the data set holds them, not normalised, and what the task
                learns from, such as `(B,)` int64.
            loss_weight: Factor of the loss.
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
        call: Call = call_whole,
    ) -> None:
        """
        Args:
            module: The raw model.
            normalize: Turns inputs as the data set holds them into what it takes.
            precision: The type it computes in.
            task: Loss and score.
            call: Calls it with the inputs of a batch.
        """
        super().__init__()
        self.module = module
        self.normalize = normalize
        self.precision = precision
        self.task = task
        self.call = call
        self.learn = task.learn

    def forward(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """The task's loss in float32, its score and its weight, each summed over the micro-batch;
        see `Task.learn`."""
        with self.precision.autocast():
            outputs = self.call(self.module, self.normalize(inputs), targets)
        if outputs is None:
            raise InputError(
                "outputs of the model while it trains",
                given="None",
                expected=f"what it gives in an evaluation: {self.task.outputs}",
            )
        return self.learn(outputs, targets)


class AutogradPasses:
    """Any model; `model` is the LossModule, compiled or within DDP or neither.

    A rank may have no sample in the last batch of an epoch, and still has to take part in its
    collectives: it computes another sample and multiplies by 0.
    """

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        scaler: torch.amp.GradScaler,
        example: Example | None = None,
    ) -> None:
        """
        Args:
            model: What is called.
            module: The raw module within it.
            scaler: Scales the loss of fp16.
            example: The first sample, which stands in for none; None: there is always one.
        """
        self.model = model
        self.scaler = scaler
        self.example = example
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.used = [False] * len(self.parameters)
        """Which of them had a gradient when it was popped, since one was set."""

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, batch: Batch, loss_weight: float) -> Sums:
        if not batch.size and self.example is not None:
            batch = self.example.batch().to(self.parameters[0].device)._replace(size=0)
        loss, score, weight = self.model(batch.inputs, batch.targets)
        if not batch.size:
            loss, score, weight = (
                None if part is None else part * 0 for part in (loss, score, weight)
            )
        self.backward(loss * loss_weight)
        return loss.detach(), score, weight

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss, as fp16 scales it."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

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
