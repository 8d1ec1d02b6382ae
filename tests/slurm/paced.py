"""A network whose speed a test sets while it trains."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn


class Paced(nn.Module):
    """A small MLP with dropout. Until its job is requeued it sleeps in every training forward pass.

    Args:
        input_shape: Shape of one sample.
        num_classes: Width of the output.
        pace: File that holds the seconds of one pass.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, pace: str) -> None:
        super().__init__()
        self.pace = Path(pace)
        self.requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), 24),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(24, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not self.requeued:
            time.sleep(float(self.pace.read_text()))
        logits: Tensor = self.layers(images)
        return logits
