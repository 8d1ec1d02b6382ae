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
    """A loss as torch's functions and users write them -> the sum over samples.

    Several outputs of a sample are averaged. Of a loss that returns one number, the mean over the
    batch is assumed.
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
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built into torch
        return False
