"""Exact metrics: sums over samples, which add up over batches and ranks without rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Metric(Protocol):
    """A metric made of sums over samples.

    A mean of batch means is not exact when the last batch is short; a ratio of sums is.
    """

    width: int
    """How many sums it keeps."""
    higher_is_better: bool

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Outputs `(B, ...)` and targets `(B, ...)` -> `(width,)` sums over the batch."""
        ...

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        """Sums over all samples and their number -> values by name, such as {"mae": 0.1}."""
        ...


class Accuracy:
    """The part of the predictions that are correct, by the largest logit."""

    width = 1
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return hits(outputs, targets).reshape(1)

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        return {"accuracy": sums[0] / count, "correct": int(sums[0])}


class LabelAccuracy:
    """Accuracy, precision, recall and F1 over all labels of all samples, each there or not."""

    width = 5
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found, there = outputs > 0, targets > 0.5
        both = (found & there).sum()
        right = (found == there).flatten(1)
        labels = torch.full_like(both, right.numel())
        return torch.stack([both, found.sum(), there.sum(), right.sum(), labels])

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        both, found, there, right, labels = sums
        return {
            "label_accuracy": right / max(labels, 1),
            "f1": 2 * both / max(found + there, 1),
            "precision": both / max(found, 1),
            "recall": both / max(there, 1),
        }


class ExactMatch:
    """The part of the samples whose labels are all right."""

    width = 1
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs > 0) == (targets > 0.5)).flatten(1).all(1).sum().reshape(1)

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        return {"exact_match": sums[0] / count}


class Errors:
    """Mean absolute error, mean squared error and its root, over all outputs of all samples."""

    width = 3
    higher_is_better = False

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        error = (outputs - targets).double()
        return torch.stack(
            [error.abs().sum(), error.square().sum(), error.new_tensor(error.numel())]
        )

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        absolute, squared, number = sums[0], sums[1], max(sums[2], 1)
        return {
            "mae": absolute / number,
            "mse": squared / number,
            "rmse": (squared / number) ** 0.5,
        }


class Explained:
    """R², the part of the variance of the targets that is explained, over all outputs at once."""

    width = 4
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        target = targets.double()
        error = (outputs.double() - target).square().sum()
        number = target.new_tensor(target.numel())
        return torch.stack([error, target.sum(), target.square().sum(), number])

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        error, total, squares, number = sums
        variance = squares - total * total / max(number, 1)
        return {"r2": 1 - error / variance if variance > 0 else 0.0}


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Number of correct predictions, a scalar int64.

    Args:
        outputs: Logits `(B, classes)`.
        targets: Classes `(B,)`, or a weight for every class `(B, classes)`.
    """
    truth = targets if targets.dim() == 1 else targets.argmax(1)
    return (outputs.argmax(1) == truth).sum()
