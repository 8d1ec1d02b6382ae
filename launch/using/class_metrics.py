"""What a classifier gets right and wrong: exact counts, and the metrics that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Counts over a data set. Rows of `confusion` are true classes, columns predicted ones."""

    loss: float
    """Mean cross-entropy."""
    confusion: NDArray[np.int64]
    """`(K, K)`."""
    bins: NDArray[np.float64]
    """`(3, NUM_BINS)`: samples, correct ones and summed confidence, by confidence."""

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def support(self) -> NDArray[np.int64]:
        """Samples of each true class."""
        return np.asarray(self.confusion.sum(1))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Samples of each predicted class."""
        return np.asarray(self.confusion.sum(0))

    @property
    def precision(self) -> NDArray[np.float64]:
        """Right ones among those predicted as a class; 0 for a class that is never predicted."""
        return _ratio(np.diag(self.confusion), self.predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Found ones among those of a class; 0 for a class without samples."""
        return _ratio(np.diag(self.confusion), self.support)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * np.diag(self.confusion), self.support + self.predicted)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, as the truth or as a prediction."""
        occurs = self.support + self.predicted > 0
        return float(self.f1[occurs].mean())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy.

        Sum over bins of (fraction of samples) * |accuracy - mean confidence|, equation 3 of Guo et
        al., On Calibration of Modern Neural Networks, ICML 2017 (https://arxiv.org/abs/1706.04599).
        """
        _, correct, confidence = self.bins
        return float(np.abs(correct - confidence).sum() / self.count)

    def reliability(self) -> list[dict[str, Any]]:
        """Accuracy and mean confidence of each bin (null if it is empty): a reliability diagram."""
        rows = []
        for index, (count, correct, confidence) in enumerate(self.bins.T.tolist()):
            rows.append(
                {
                    "above": index / NUM_BINS,
                    "up_to": (index + 1) / NUM_BINS,
                    "count": int(count),
                    "accuracy": correct / count if count else None,
                    "confidence": confidence / count if count else None,
                }
            )
        return rows


class Tally:
    """Adds up batches on their device; the host reads once, at the end."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
        self.bins = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)
        self.sums: list[Tensor] = []

    @torch.inference_mode()
    def add(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Count one batch.

        Args:
            logits: `(B, K)`, any float type.
            targets: `(B,)` int64, 0 <= target < K.

        Returns:
            The predicted classes `(B,)` and their probabilities `(B,)` in float64.
        """
        predicted = logits.argmax(1)
        logits = logits.double()
        confidence = logits.softmax(1).amax(1)
        right = predicted == targets
        loss = F.cross_entropy(logits, targets, reduction="sum")
        # The rows of trainer/objective/evaluation.py: their sum is the one that training recorded.
        count = torch.tensor(len(targets), device=logits.device)
        self.sums.append(torch.stack([loss, right.sum().double(), count.double()]))
        self.confusion += torch.bincount(
            targets * self.num_classes + predicted, minlength=self.num_classes**2
        )
        # Bin m holds ((m - 1) / M, m / M], as in the paper.
        bins = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), right.double(), confidence])
        self.bins.index_add_(1, bins, rows)
        return predicted, confidence

    def metrics(self) -> Metrics:
        """Everything counted so far. Waits for the device."""
        loss, _, count = torch.stack(self.sums).sum(0).tolist()
        shape = (self.num_classes, self.num_classes)
        return Metrics(
            loss=loss / count,
            confusion=self.confusion.cpu().numpy().reshape(shape),
            bins=self.bins.cpu().numpy(),
        )


def _ratio(part: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / total, 0 where there is nothing to divide by."""
    return np.divide(part, total, out=np.zeros(len(total)), where=total > 0)
