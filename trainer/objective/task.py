"""A task: the loss of a batch, its score, and what an evaluation reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from data.structures import floats_as, map_tensors, outline, tensors
from trainer.objective.losses import Judged, Loss, summed_over
from trainer.objective.metrics import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Loss, score and metrics of a run."""

    loss: Loss
    """What is minimised."""
    name: str = "own"
    measured_loss: Loss | None = None
    """What an evaluation reports: the loss without what only training needs; None: the same."""
    score: Callable[[Any, Any], Tensor] = lambda outputs, targets: next(tensors(outputs)).new_zeros(
        ()
    )
    """The sum of a score over a batch, recorded while training as `train/SCORE_NAME`."""
    score_name: str = ""
    """Empty: there is no score."""
    metrics: tuple[Metric, ...] = ()
    best: str = "loss"
    """The metric that tells which weights are best, unless `evaluate.best` names another."""
    accepts: Callable[[Tensor], bool] = lambda target: True
    """Whether the target of one sample can be learned from."""
    expects: str = ""
    """What targets should be, for a message; empty: anything, and `accepts` is not asked."""
    outputs: str = "what its loss takes"
    """What outputs should be, for a message."""
    takes_targets: bool = False
    """Whether the model computes the loss itself, and is called with what is to be learned too."""
    label_smoothing: float | None = None
    """The label smoothing of a plain cross-entropy, whose gradient may be written out; None for any
    other loss."""
    align: Callable[[Any, Any], Any] = lambda outputs, targets: outputs
    """Brings outputs into the shape that loss and metrics compare with the targets."""

    @property
    def width(self) -> int:
        """How many sums `measure` returns."""
        return 3 + sum(metric.width for metric in self.metrics)

    def learn(
        self, outputs: Any, targets: Any, size: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss and the score of a batch, each summed; only the loss has a graph. And what both
        are divided by in the end, if that is not the number of samples, `size` if given."""
        outputs = self.align(floats_as(torch.float32, outputs), targets)
        loss, weight = summed_over(self.loss(outputs, targets), outputs, targets, size)
        return loss, self.score(map_tensors(Tensor.detach, outputs), targets), weight

    def measure(self, outputs: Any, targets: Any, size: int | None = None) -> Tensor:
        """Sums over a batch, float64 `(width,)`, that may be added over batches and ranks: the
        loss, its weight, the number of samples (`len(targets)`), then those of the metrics."""
        aligned = self.align(outputs, targets)
        precise = self.align(floats_as(torch.float64, outputs), targets)
        measured_loss = self.measured_loss or self.loss
        loss, weight = summed_over(measured_loss(precise, targets), precise, targets, size)
        loss = loss.double()
        count = loss.new_tensor(len(targets) if size is None else size)
        first = torch.stack([loss, count if weight is None else weight.double(), count])
        said = aligned.outputs if isinstance(aligned, Judged) else aligned
        sums = [_sums_of(metric, said, targets) for metric in self.metrics]
        return torch.cat([first, *sums])

    def report(self, sums: Sequence[float]) -> dict[str, float]:
        """The values of an evaluation by name, from the sums over all of its samples."""
        weight, count, start = sums[1], int(sums[2]), 3
        values = {"loss": sums[0] / weight if weight else 0.0}
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

    def check_target(self, target: Any) -> None:
        """Refuse data of another task by the target of one sample.

        Raises:
            InputError: With the type and shape that were found.
        """
        tensor = isinstance(target, Tensor)
        if not (tensor and self.accepts(target)) and self.expects:
            found = f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}"
            raise InputError(
                f"targets for task.name={self.name}",
                given=found if tensor else outline(target),
                expected=self.expects,
                remedy="Choose another task.name, or change the data set. With a loss of your own "
                "anything can be learned: --task.name loss --task.loss package.module:function.",
            )


def _sums_of(metric: Metric, outputs: Any, targets: Any) -> Tensor:
    found = metric.sums(outputs, targets).double()
    if found.shape != (metric.width,):
        raise InputError(
            f"task.metrics {type(metric).__name__}",
            given=f"{found.numel()} sums" if found.dim() < 2 else f"sums {tuple(found.shape)}",
            expected=f"{metric.width}, its width",
        )
    return found
