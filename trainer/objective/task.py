"""A task: the loss of a batch, its score, and what an evaluation reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from trainer.objective.losses import Loss
from trainer.objective.metrics import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Loss, score and metrics of a run."""

    name: str
    loss: Loss
    """What is minimised."""
    measured_loss: Loss
    """What an evaluation reports: the loss without what only training needs."""
    score: Loss
    """The sum of a score over a batch, recorded while training as `train/SCORE_NAME`."""
    score_name: str
    metrics: tuple[Metric, ...]
    best: str
    """The metric that tells which weights are best, unless `evaluate.best` names another."""
    accepts: Callable[[Tensor], bool]
    """Whether the target of one sample can be learned from."""
    expects: str
    """What targets should be, for a message."""
    outputs: str
    """What outputs should be, for a message."""
    label_smoothing: float | None = None
    """The label smoothing of a plain cross-entropy, whose gradient may be written out; None for any
    other loss."""
    align: Callable[[Tensor, Tensor], Tensor] = lambda outputs, targets: outputs
    """Brings outputs into the shape that loss and metrics compare with the targets."""

    @property
    def width(self) -> int:
        """How many sums `measure` returns."""
        return 2 + sum(metric.width for metric in self.metrics)

    def learn(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the score of a batch, each summed; only the loss has a graph."""
        outputs = self.align(outputs.float(), targets)
        return self.loss(outputs, targets), self.score(outputs.detach(), targets)

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sums over a batch, float64 `(width,)`, that may be added over batches and ranks."""
        aligned = self.align(outputs, targets)
        loss = self.measured_loss(self.align(outputs.double(), targets), targets)
        sums = [metric.sums(aligned, targets).double() for metric in self.metrics]
        return torch.cat([torch.stack([loss, loss.new_tensor(len(targets))]), *sums])

    def report(self, sums: Sequence[float]) -> dict[str, float]:
        """The values of an evaluation by name, from the sums over all of its samples."""
        count, start = int(sums[1]), 2
        values = {"loss": sums[0] / count}
        for metric in self.metrics:
            values |= metric.compute(sums[start : start + metric.width], count)
            start += metric.width
        return values | {"count": count}

    def names(self) -> dict[str, bool]:
        """The name of every value that is reported, and whether more of it is better."""
        directions = {"loss": False}
        for metric in self.metrics:
            values = metric.compute([1.0] * metric.width, 1)
            directions |= dict.fromkeys(values, metric.higher_is_better)
        return directions

    def check_target(self, target: Tensor) -> None:
        """Refuse data of another task by the target of one sample.

        Raises:
            InputError: With the type and shape that were found.
        """
        if not self.accepts(target):
            raise InputError(
                f"targets for task.name={self.name}",
                given=f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}",
                expected=self.expects,
                remedy="Choose another task.name, or change the data set.",
            )
