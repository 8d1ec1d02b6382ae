"""Losses, summed over the samples of a batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from configs.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs `(B, ...)` in float32 or float64 and targets `(B, ...)` -> the loss, summed over B."""


LOSS_PROTOCOL = (
    "a callable (outputs, targets) -> the loss of every sample or of every output, `(B, ...)`, or "
    "its mean over the batch; it is called with reduction='none' if it takes that"
)


def summed(loss: Callable[..., Tensor]) -> Loss:
    """Turn a loss as torch's functions and users write it into one that sums over samples.

    Several outputs of a sample are averaged. A loss that returns one number is taken to be the mean
    over the batch.

    Args:
        loss: See `LOSS_PROTOCOL`.

    Returns:
        `(outputs, targets)` -> the sum over the batch, a scalar. Targets that are floats, or have
        the shape of the outputs, are cast to the type of the outputs.
    """
    options = {"reduction": "none"} if _takes(loss, "reduction") else {}

    def total(outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.is_floating_point() or outputs.shape == targets.shape:
            targets = targets.to(outputs.dtype)
        value = loss(outputs, targets, **options)
        if value.dim() == 0:
            return value * len(outputs)
        return value.reshape(len(outputs), -1).mean(1).sum()

    return total


def check_mean(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    """Refuse a loss whose one number is no mean over samples, by trying it on a batch and on parts.

    A sum, a mean over weights or over tokens that count, and what compares samples with each other
    would each be learned with another weight on another number of ranks, and recorded so.

    Args:
        loss: From `summed`.
        outputs: `(B, ...)`, B of 3 or more.
        targets: `(B, ...)`.

    Raises:
        InputError: With what it returned.
    """
    cut = max(len(targets) // 3, 1)
    whole = float(loss(outputs, targets))
    parts = [float(loss(outputs[span], targets[span])) for span in (slice(cut), slice(cut, None))]
    if not all(map(math.isfinite, (whole, *parts))) or math.isclose(
        whole, sum(parts), rel_tol=1e-3, abs_tol=1e-6
    ):
        return
    count = len(targets)
    values = whole / count, parts[0] / cut, parts[1] / (count - cut)
    raise InputError(
        "task.loss",
        given=f"one number, {values[0]:.4g} for {count} samples, and {values[1]:.4g} and "
        f"{values[2]:.4g} for {cut} and {count - cut} of them",
        expected="the mean over samples, whatever the batch",
        remedy="Return the loss of every sample, (B,) or (B, ...), as reduction='none' gives it: "
        "it is averaged over all ranks and micro-batches.",
    )


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built into torch
        return False
