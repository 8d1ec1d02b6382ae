"""Whether a model suits its task, found out before it trains."""

from __future__ import annotations

import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import InputError, failing_line, one_line
from data.normalize import Normalize
from data.samples import Batch, Collate, MapDataset
from data.splits import known_labels
from data.structures import floats_as, is_record, map_tensors, outline, split, tensors
from trainer.networks.calling import REMEDY, Call, takes
from trainer.networks.module_state import evaluating
from trainer.objective.losses import check_mean, not_a_mean, own_weights, summed_over
from trainer.objective.task import Task

log = logging.getLogger("convoy")
FAR = 3.0
"""The deviation that outputs are brought to: those of initial weights may lie so close together
that a mean over anything is as good as another."""
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
        outputs = outputs_of(model, call, inputs, batch.targets)
    with _fitting(task, inputs, outputs, batch.targets):
        with torch.enable_grad():
            said = map_tensors(Tensor.detach, outputs)
            loss, *_ = task.learn(said, batch.targets, batch.size)
        if loss.requires_grad:
            raise own_weights("one that has something to learn: parameters, or the model itself")
        task.measure(outputs, batch.targets, batch.size)


@contextmanager
def _fitting(task: Task, inputs: Any, outputs: Any, targets: Any) -> Iterator[None]:
    """Turn what loss or metrics raise about outputs into a message, and refuse to broadcast.

    Raises:
        InputError: With the shapes.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")
            yield
    except InputError:
        raise
    except (*MISFITS, UserWarning) as error:
        line = failing_line(error)  # of a loss or a metric of the user's
        raise InputError(
            f"outputs of the model for task.name={task.name} ({one_line(error)}"
            f"{f', at {line}' if line else ''})",
            given=f"{outline(outputs)} for inputs {outline(inputs)}",
            expected=f"what suits targets {outline(targets)}: {task.outputs}",
        ) from None


def outputs_of(model: nn.Module, call: Call, inputs: Any, targets: Any) -> Any:
    """What the model makes of inputs, normalised.

    Raises:
        InputError: If they are not its kind; any other fault keeps its traceback.
    """
    try:
        return call(model, inputs, targets)
    except MISFITS as error:
        if not (_is_no_tensor(error, inputs) or _is_called_wrongly(error, model)):
            raise  # a fault within the model, which its traceback shows
        raise InputError(
            f"inputs of the model ({one_line(error)})",
            given=outline(inputs),
            expected=f"what {takes(model)} takes: one argument, as many as there are inputs, or "
            "the names of a batch that has names",
            remedy=REMEDY,
        ) from None


def _is_no_tensor(error: Exception, inputs: Any) -> bool:
    """Whether an operation was given the inputs as a whole, where it takes a tensor."""
    if isinstance(inputs, torch.Tensor) or isinstance(error, RuntimeError | ValueError):
        return False
    kinds = {type(inputs).__name__, *({"slice"} if is_record(inputs) else ())}
    return not kinds.isdisjoint(re.findall(r"\w+", str(error)))


def _is_called_wrongly(error: Exception, model: nn.Module) -> bool:
    """Whether a `model.forward` of the user's called the model so that it did not even begin."""
    begins = getattr(inspect.unwrap(model.forward), "__code__", None)
    frames = traceback.walk_tb(error.__traceback__)
    return (
        isinstance(error, TypeError)
        and "forward" in str(error)
        and begins not in {frame.f_code for frame, _ in frames}
    )


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

    A loss of the model's own may depend on more than its samples: of that it is said only.

    Raises:
        InputError: If it is no mean over samples.
    """
    cut = max(len(samples) // 3, 1)
    parts = [list(samples), list(samples[:cut]), list(samples[cut:])]
    values, far, scale = [], [], 0.0
    with evaluating(model), torch.no_grad():
        for part in parts:
            batch = Batch(*split(collate(part)), len(part)).to(normalize.device)
            inputs = normalize(batch.inputs)
            outputs = call(model, inputs, batch.targets)
            scale = scale or _scale(outputs)
            with _fitting(task, inputs, outputs, batch.targets):
                values.append(_loss_of(task, outputs, batch))
            with suppress(Exception):  # what a loss may say of outputs that nobody has seen
                far.append(_loss_of(task, map_tensors(partial(_times, scale), outputs), batch))
    counts = [len(part) for part in parts]
    if not task.takes_targets:
        check_mean(values, counts)
        if len(far) == len(parts):
            check_mean(far, counts)
    elif found := not_a_mean(values, counts):
        log.info(
            f"the loss of the model is not what task.kwargs.mean_over says: {found}. It averages "
            "over something else, draws random numbers, or compares samples with each other: then "
            "another micro-batch, or number of ranks, learns something else (docs/batches.md)"
        )


def _loss_of(task: Task, outputs: Any, batch: Batch) -> Tensor | tuple[Tensor, Tensor]:
    """Summed over a batch, with its weight if it has one."""
    outputs = task.align(floats_as(torch.float32, outputs), batch.targets)
    value, weight = summed_over(
        task.loss(outputs, batch.targets), outputs, batch.targets, batch.size
    )
    return value if weight is None else (value, weight)


def _times(scale: float, tensor: Tensor) -> Tensor:
    return tensor * scale if tensor.is_floating_point() else tensor


def _scale(outputs: Any) -> float:
    """Brings the first output to a deviation of `FAR`; 1 for probabilities, which end at 1."""
    found = next((t.float() for t in tensors(outputs) if t.is_floating_point()), None)
    if found is None or found.numel() < 2 or (found.min() >= 0 and found.max() <= 1):
        return 1.0
    return FAR / (float(found.std()) or FAR)


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
