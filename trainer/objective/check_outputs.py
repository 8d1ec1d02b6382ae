"""Whether a model suits its task, found out before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.errors import InputError
from data.normalize import Normalize
from data.samples import Batch, Collate, MapDataset
from data.splits import known_labels
from data.structures import floats_as, outline, split
from trainer.networks.calling import Call
from trainer.networks.module_state import evaluating
from trainer.objective.losses import check_mean
from trainer.objective.task import Task

MISFITS = (RuntimeError, IndexError, ValueError, TypeError, AttributeError, KeyError)
"""What a function raises that is given what it was not made for."""


def check_outputs(
    model: nn.Module, call: Call, normalize: Normalize, batch: Batch, task: Task
) -> None:
    """Try one sample, so that a model that does not suit the task is refused before it trains.

    Args:
        model: In any mode; it is evaluated, and left in the mode it was in.
        call: Calls it with the inputs of a batch.
        normalize: Turns inputs into what the model takes.
        batch: One sample, on any device.
        task: What the outputs are measured with.

    Raises:
        InputError: With the shape of the outputs and what the task expects.
    """
    batch = batch.to(normalize.device)
    inputs = normalize(batch.inputs)
    with evaluating(model), torch.no_grad():
        outputs = _outputs(model, call, inputs, batch.targets)
    try:
        task.measure(outputs, batch.targets, batch.size)
    except MISFITS as error:
        raise InputError(
            f"outputs of the model for task.name={task.name} ({_one_line(error)})",
            given=f"{outline(outputs)} for inputs {outline(inputs)}",
            expected=f"what suits targets {outline(batch.targets)}: {task.outputs}",
        ) from None


def _outputs(model: nn.Module, call: Call, inputs: Any, targets: Any) -> Any:
    """What the model makes of inputs; inputs that are not its kind are the config's fault."""
    try:
        return call(model, inputs, targets)
    except TypeError as error:
        if "forward" not in str(error):  # from within the model, not from its call
            raise
        raise InputError(
            f"inputs of the model ({_one_line(error)})",
            given=outline(inputs),
            expected="what its forward takes: one argument, as many as there are inputs, or the "
            "names of a batch that has names",
            remedy="Name a function (model, batch) -> outputs with --model.forward.",
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_loss(
    model: nn.Module,
    call: Call,
    normalize: Normalize,
    samples: Sequence[Any],
    collate: Collate,
    task: Task,
) -> None:
    """Try the loss on some samples, whole and in parts; see `check_mean`.

    Args:
        model: In any mode; it is evaluated, and left in the mode it was in.
        call: Calls it with the inputs of a batch.
        normalize: Turns inputs into what the model takes.
        samples: As the data set gives them, 3 or more.
        collate: Makes a batch of them.
        task: Whose loss it is.

    Raises:
        InputError: If it is no mean over samples.
    """
    cut = max(len(samples) // 3, 1)
    parts = [list(samples), list(samples[:cut]), list(samples[cut:])]
    values = []
    with evaluating(model), torch.no_grad():
        for part in parts:
            batch = Batch(*split(collate(part)), len(part)).to(normalize.device)
            outputs = call(model, normalize(batch.inputs), batch.targets)
            outputs = task.align(floats_as(torch.float32, outputs), batch.targets)
            values.append(task.loss(outputs, batch.targets))
    check_mean(values, [len(part) for part in parts])


def check_classes(sets: Mapping[str, MapDataset], num_classes: int, task: Task) -> None:
    """Refuse a label that no output stands for, where labels are known without reading samples."""
    for name, part in sets.items():
        labels = known_labels(part) if task.name == "classification" else None
        if labels is None or not len(labels) or not num_classes:
            continue
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(wrong):
            raise InputError(
                f"{name} sample {wrong[0]}: label",
                given=int(labels[wrong[0]]),
                expected=f"0 to {num_classes - 1}, for {num_classes} classes",
                remedy="Leave such samples out of the data set: there is no label to ignore.",
            )
