"""The tasks that a config can name, and how a config becomes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from configs.imports import call_with, import_object, is_import_path, require_takes
from configs.registry import resolve
from configs.schema_model import TaskConfig
from data.structures import floats_as
from data.vocabulary import Vocabulary
from trainer.objective.losses import (
    LOSS_PROTOCOL,
    Loss,
    logits_of,
    own_weights,
    summed,
    torch_entropy,
)
from trainer.objective.metrics import (
    Accuracy,
    Errors,
    ExactMatch,
    Explained,
    LabelAccuracy,
    Metric,
    hits,
)
from trainer.objective.model_loss import model_loss
from trainer.objective.next_token import next_token
from trainer.objective.task import Task


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
        align=lambda outputs, targets: logits_of(outputs),
    )


def loss_alone() -> Task:
    """What `task.loss` says, of any outputs and targets; nothing else is measured."""
    return Task(name="loss", loss=lambda outputs, targets: outputs)


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
        align=lambda outputs, targets: logits_of(outputs),
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
        align=_as_targets,
    )


def _as_targets(found: Any, targets: Tensor) -> Tensor:
    """Outputs `(B, 1)` as `(B,)` where the targets are, and the other way round; others must have
    the targets' shape."""
    outputs: Tensor = logits_of(found)
    if outputs.shape == (*targets.shape, 1):
        return outputs.squeeze(-1)
    if (*outputs.shape, 1) == targets.shape:
        return outputs.unsqueeze(-1)
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}")
    return outputs


TASKS: dict[str, Callable[..., Task]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "next_token": next_token,
    "loss": loss_alone,
    "model_loss": model_loss,
}

SMOOTHED = ("classification", "next_token")
"""Tasks that know train.label_smoothing."""
METRIC_PROTOCOL = (
    "a class or an object with `width`, `higher_is_better`, `sums(outputs, targets)` -> `(width,)` "
    "and `compute(sums, count)` -> a dict of values by name (see trainer/objective/metrics.py)"
)


def build_task(
    config: TaskConfig, *, label_smoothing: float, vocabulary: Vocabulary | None = None
) -> Task:
    """Build the task of a run, with the user's loss and metrics if the config names some.

    Args:
        config: The name of the task, its arguments, and import paths of a loss and of metrics.
        label_smoothing: train.label_smoothing, for a classification or the next token.
        vocabulary: Of the data, if these are tokens.

    Raises:
        InputError: If a name leads nowhere, or to something that does not keep its protocol.
    """
    factory = resolve("task.name", config.name, TASKS)
    if label_smoothing and config.name not in SMOOTHED:
        raise InputError(
            "train.label_smoothing",
            given=label_smoothing,
            expected=f"0 unless task.name={' or '.join(SMOOTHED)}",
        )
    offered = {"label_smoothing": label_smoothing, "vocabulary": vocabulary}
    task = call_with("task.kwargs", factory, dict(config.kwargs), offered)
    if not isinstance(task, Task):
        raise InputError(
            "task.name",
            given=config.name,
            expected="a callable that returns a Task (trainer/objective/task.py)",
        )
    if is_import_path(config.name):
        task = replace(task, measured_loss=_in_float32(task.measured_loss or task.loss))
    if config.loss is None and task.name == "loss":
        raise InputError("task.loss", given=None, expected=LOSS_PROTOCOL)
    if config.loss is not None:
        loss = import_object("task.loss", config.loss)
        if isinstance(loss, type):  # a module such as torch.nn:SmoothL1Loss
            loss = call_with("task.loss", loss, {}, {"reduction": "none"})
        if not callable(loss):
            raise InputError("task.loss", given=config.loss, expected=LOSS_PROTOCOL)
        called = loss.forward if isinstance(loss, nn.Module) else loss
        require_takes("task.loss", called, 2, LOSS_PROTOCOL, named=["reduction"])
        if label_smoothing:
            raise InputError(
                "train.label_smoothing",
                given=label_smoothing,
                expected="0 with a task.loss of your own",
                remedy="Smooth the labels in that loss.",
            )
        total = summed(_ready(loss))
        task = replace(task, loss=total, measured_loss=_in_float32(total), label_smoothing=None)
    own = [(path, _metric(path)) for path in config.metrics]
    _check_names(task, own)
    return replace(task, metrics=(*task.metrics, *(metric for _, metric in own)))


def _ready(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss whose buffers and frozen weights, if it has some, are where the outputs are."""
    if not isinstance(loss, nn.Module) or torch_entropy(loss) is not None:
        return loss  # torch's own is known to `summed`, which moves its weights
    trainable = [name for name, p in loss.named_parameters() if p.requires_grad]
    if trainable:
        raise own_weights(f"a module with parameters ({trainable[0]}, ...)")
    return _Moving(loss) if loss.state_dict() else loss


class _Moving:
    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.__signature__ = inspect.signature(loss.forward)

    def __call__(self, outputs: Tensor, targets: Tensor, **options: str) -> Tensor:
        value: Tensor = self.loss.to(outputs.device)(outputs, targets, **options)
        return value


def _in_float32(loss: Loss) -> Loss:
    """Evaluated in the type it is trained in: a weight of its own is of that type."""
    return lambda outputs, targets: loss(floats_as(torch.float32, outputs), targets)


def _check_names(task: Task, own: Sequence[tuple[str, Metric]]) -> None:
    """Refuse metrics of a name that is taken: one value would be recorded in place of the other."""
    taken = {"count", *task.names()}
    for path, metric in own:
        names = metric.compute([1.0] * metric.width, 1).keys()
        if clash := taken & names:
            raise InputError(
                f"task.metrics {path}",
                given=f"a value called {min(clash)}",
                expected=f"another name than {', '.join(sorted(taken))}",
            )
        taken |= names


def _metric(path: str) -> Metric:
    """The metric at an import path, made first if it is a class."""
    found = import_object("task.metrics", path)
    if isinstance(found, type):
        found = call_with("task.metrics", found, {}, {})
    if not isinstance(found, Metric):
        raise InputError("task.metrics", given=path, expected=METRIC_PROTOCOL)
    for method in (found.sums, found.compute):
        require_takes(f"task.metrics {path}", method, 2, METRIC_PROTOCOL)
    return found
