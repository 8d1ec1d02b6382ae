"""The loss of a global batch as a function of the weights, for optimizers that ask for it often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.objective.meter import Meter
from trainer.ranks.collectives import sum_
from trainer.ranks.rng import capture_rng, restore_rng
from trainer.ranks.runtime import Runtime


class Differentiable(Protocol):
    """Whoever computes the gradient of a global batch: the train step."""

    def differentiate(
        self, global_batch: GlobalBatch, batches: Iterator[Batch], meter: Meter
    ) -> None: ...

    def gradient_norm(self) -> Tensor: ...


class Closure:
    """What LBFGS calls, several times a step: gradient and loss at the weights of the moment.

    Every call sees the same samples, the same random numbers (dropout, augmentation) and the same
    batch-norm statistics, so that it is a function of the weights. Ranks get the same loss to the
    last bit, and so take the same decisions. After the step, generators and statistics have moved
    by one evaluation.
    """

    def __init__(
        self,
        step: Differentiable,
        global_batch: GlobalBatch,
        batches: Iterator[Batch],
        module: nn.Module,
        runtime: Runtime,
    ) -> None:
        self.step = step
        self.global_batch = global_batch
        self.batches = [next(batches) for _ in global_batch.micro_batches]
        self.module = module
        self.runtime = runtime
        self.rng = capture_rng(runtime.device)
        self.buffers = [buffer.clone() for buffer in module.buffers()]
        self.meter = Meter()
        """Of the first evaluation: at the weights before the step, as with any optimizer."""
        self.norm: Tensor | None = None
        """Norm of its gradient."""

    def __call__(self) -> Tensor:
        """Fill `.grad`; returns the mean loss over the samples of all ranks, float64."""
        first = self.norm is None
        meter = self.meter if first else Meter()
        if not first:
            restore_rng(self.rng, self.runtime.device)
            for buffer, before in zip(self.module.buffers(), self.buffers, strict=True):
                buffer.copy_(before)
        self.step.differentiate(self.global_batch, iter(self.batches), meter)
        if first:
            self.norm = self.step.gradient_norm()
        batch, weights = self.global_batch, meter.weights
        total = total_over_ranks(meter.losses, batch, self.runtime)
        if not weights:
            return total / batch.size
        return total / total_over_ranks(weights, batch, self.runtime)


def total_over_ranks(values: list[Tensor], batch: GlobalBatch, runtime: Runtime) -> Tensor:
    """The sum of a number of every micro-batch of all ranks, a float64 scalar on the device.

    Each has a place of its own, so that the sum has one order on all ranks.
    """
    # An empty micro-batch may begin at the end.
    places = torch.zeros(batch.size + 1, dtype=torch.float64, device=runtime.device)
    for micro, value in zip(batch.micro_batches, values, strict=True):
        places[micro.start] += value
    return sum_(runtime, places).sum()
