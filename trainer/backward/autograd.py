"""The forward and the backward pass of one micro-batch."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.errors import InputError
from data.normalize import Normalize
from data.samples import Batch, Example
from trainer.networks.calling import Call, call_whole
from trainer.networks.module_state import buffers_kept
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
        self.overwritten = False
        """Whether the next pass writes over what this one gave: its outputs and gradients. So do
        the graphs that torch.compile records by itself."""

    def forward(
        self, inputs: Any, targets: Any, size: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The task's loss in float32, its score and its weight, each summed over the micro-batch;
        see `Task.learn`, and `arguments_of` for what it is called with."""
        with self.precision.autocast():
            outputs = self.call(self.module, self.normalize(inputs), targets)
        if outputs is None:
            raise InputError(
                "outputs of the model while it trains",
                given="None",
                expected=f"what it gives in an evaluation: {self.task.outputs}",
            )
        if size is None:
            return self.learn(outputs, targets)
        return self.learn(outputs, targets, size)


def arguments_of(batch: Batch) -> tuple[Any, ...]:
    """What a LossModule is called with: inputs, targets and, where these are no tensor that tells
    it, the number of samples, 1 for the one that stands for none."""
    if isinstance(batch.targets, Tensor):
        return batch.inputs, batch.targets
    return batch.inputs, batch.targets, batch.size or 1


class AutogradPasses:
    """Any model; `model` is the LossModule, compiled or within DDP or neither.

    A rank may have no sample in the last batch of an epoch, and still has to take part in its
    collectives: it computes another sample, multiplies by 0, and keeps its buffers.
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
        self.module = module
        self.scaler = scaler
        self.example = example
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.size = sum(parameter.numel() for parameter in self.parameters)
        self.used = [False] * len(self.parameters)
        """Which of them had a gradient when it was popped, since one was set."""
        loss = model if isinstance(model, LossModule) else getattr(model, "module", None)
        self.overwritten = isinstance(loss, LossModule) and loss.overwritten

    def clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def __call__(self, batch: Batch, loss_weight: float) -> Sums:
        if batch.size or self.example is None:
            return self._add(batch, loss_weight)
        stand_in = self.example.batch().to(self.parameters[0].device)._replace(size=0)
        with buffers_kept(self.module):
            found = self._add(stand_in, 0.0)
        loss, score, weight = (None if part is None else part * 0 for part in found)
        return loss, score, weight

    def _add(self, batch: Batch, loss_weight: float) -> Sums:
        if self.overwritten:
            for parameter in self.parameters:
                if parameter.grad is not None:  # of an earlier micro-batch
                    parameter.grad = parameter.grad.clone()
        loss, score, weight = self.model(*arguments_of(batch))
        self.backward(loss * loss_weight)
        loss = loss.detach()
        if self.overwritten:
            loss, score = loss.clone(), score.clone()
            weight = None if weight is None else weight.clone()
        return loss, score, weight

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
