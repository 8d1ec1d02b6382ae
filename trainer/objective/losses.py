"""Losses, summed over the samples of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

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


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built into torch
        return False
