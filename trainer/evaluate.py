"""Exact evaluation: every test sample once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from data.datasets import Normalize
from data.loader import Loader
from data.sampler import evaluation_batches
from trainer.collectives import sum_
from trainer.precision import Precision
from trainer.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts over the whole test set."""

    loss: float
    """Mean cross-entropy."""
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    loader: Loader,
    *,
    num_samples: int,
    batch_size: int,
    normalize: Normalize,
    precision: Precision,
    runtime: Runtime,
    interrupted: Callable[[], bool],
) -> Evaluation | None:
    """Evaluate the unwrapped module in eval mode, and leave it in the mode it was in.

    Batches are the same on every world size and each rank sends the sums of its own ones, so the
    counts are equal to the last integer and the loss to the last bit. One all-reduce.

    Returns:
        The counts, or None if `interrupted` said so; all ranks ask it equally often.
    """
    num_batches = len(evaluation_batches(num_samples, batch_size))
    sums = torch.zeros(num_batches, 3, dtype=torch.float64, device=runtime.device)
    batches = loader.evaluation(batch_size, runtime.rank, runtime.world_size)
    modes = [(part, part.training) for part in module.modules()]  # a user may have frozen some
    module.eval()
    try:
        for _ in range(-(-num_batches // runtime.world_size)):
            if interrupted():
                return None
            found = next(batches, None)
            if found is None:
                continue
            index, (inputs, targets) = found
            with precision.autocast():
                logits = module(normalize(inputs))
            sums[index, 0] = F.cross_entropy(logits.double(), targets, reduction="sum")
            sums[index, 1] = (logits.argmax(1) == targets).sum()
            sums[index, 2] = len(targets)
    finally:
        for part, mode in modes:
            part.training = mode
    # Float64 holds these integers exactly, and only one rank adds to each row.
    loss, correct, count = sum_(runtime, sums).sum(0).tolist()
    assert count == num_samples
    return Evaluation(loss / count, int(correct), int(count))
