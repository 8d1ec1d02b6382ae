"""What is learned: the loss of a batch, and what an evaluation reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from configs.imports import call_with, import_object
from configs.registry import resolve
from configs.schema_training import TaskConfig
from trainer.objective.losses import LOSS_PROTOCOL, Loss, summed
from trainer.objective.metrics import (
    Accuracy,
    Errors,
    ExactMatch,
    Explained,
    LabelAccuracy,
    Metric,
    hits,
)


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
                remedy=f"Choose task.name among {', '.join(TASKS)}, or change the data set.",
            )


def classification(*, label_smoothing: float = 0.0) -> Task:
    """One class of several: logits `(B, classes)`, targets `(B,)` integers."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=label_smoothing)

    return Task(
        name="classification",
        loss=loss,
        measured_loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"),
        score=hits,
        score_name="accuracy",
        metrics=(Accuracy(),),
        best="accuracy",
        accepts=lambda target: target.dim() == 0 and not target.is_floating_point(),
        expects="a whole number, the class of the sample",
        outputs="logits (B, number of classes)",
        label_smoothing=label_smoothing,
    )


def multilabel() -> Task:
    """Labels that are each there or not: logits and targets `(B, labels)`, targets 0 or 1.

    Binary cross-entropy, averaged over the labels of a sample.
    """
    loss = summed(F.binary_cross_entropy_with_logits)
    return Task(
        name="multilabel",
        loss=loss,
        measured_loss=loss,
        score=lambda outputs, targets: ((outputs > 0) == (targets > 0.5)).double().mean(1).sum(),
        score_name="label_accuracy",
        metrics=(LabelAccuracy(), ExactMatch()),
        best="f1",
        accepts=lambda target: target.dim() == 1,
        expects="a vector with 0 or 1 for every label",
        outputs="logits of the shape of the targets",
    )


def regression() -> Task:
    """Numbers: outputs and float targets `(B, ...)`; outputs `(B, 1)` suit targets `(B,)`.

    Squared error, averaged over the outputs of a sample.
    """
    loss = summed(F.mse_loss)
    return Task(
        name="regression",
        loss=loss,
        measured_loss=loss,
        score=lambda outputs, targets: (
            (outputs - targets).double().abs().reshape(len(outputs), -1).mean(1).sum()
        ),
        score_name="mae",
        metrics=(Errors(), Explained()),
        best="loss",
        accepts=lambda target: target.is_floating_point(),
        expects="one or several floating-point numbers",
        outputs="as many numbers as the targets have",
        align=lambda outputs, targets: outputs.reshape(targets.shape),
    )


TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
}

METRIC_PROTOCOL = (
    "a class or an object with `width`, `higher_is_better`, `sums(outputs, targets)` -> `(width,)` "
    "and `compute(sums, count)` -> a dict of values by name (see trainer/objective/metrics.py)"
)


def build_task(config: TaskConfig, *, label_smoothing: float) -> Task:
    """Build the task of a run, with the user's loss and metrics if the config names some.

    Args:
        config: The name of the task, its arguments, and import paths of a loss and of metrics.
        label_smoothing: train.label_smoothing, for a classification.

    Raises:
        InputError: If a name leads nowhere, or to something that does not keep its protocol.
    """
    factory = resolve("task.name", config.name, TASKS)
    if label_smoothing and config.name != "classification":
        raise InputError(
            "train.label_smoothing",
            given=label_smoothing,
            expected="0 unless task.name=classification",
        )
    offered = {"label_smoothing": label_smoothing}
    task = call_with("task.kwargs", factory, dict(config.kwargs), offered)
    if not isinstance(task, Task):
        raise InputError(
            "task.name",
            given=config.name,
            expected="a callable that returns a Task (trainer/objective/task.py)",
        )
    if config.loss is not None:
        loss = import_object("task.loss", config.loss)
        if isinstance(loss, type):  # a module such as torch.nn:SmoothL1Loss
            loss = call_with("task.loss", loss, {}, {"reduction": "none"})
        if not callable(loss):
            raise InputError("task.loss", given=config.loss, expected=LOSS_PROTOCOL)
        task = replace(task, loss=summed(loss), measured_loss=summed(loss), label_smoothing=None)
    return replace(task, metrics=(*task.metrics, *map(_metric, config.metrics)))


def _metric(path: str) -> Metric:
    """The metric at an import path, made first if it is a class."""
    found = import_object("task.metrics", path)
    if isinstance(found, type):
        found = call_with("task.metrics", found, {}, {})
    if not isinstance(found, Metric):
        raise InputError("task.metrics", given=path, expected=METRIC_PROTOCOL)
    return found
