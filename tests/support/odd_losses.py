"""Losses that say what they are a mean over."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def token_loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the tokens that are there, and how many they are."""
    value = F.cross_entropy(outputs, targets, reduction="sum", ignore_index=-100)
    return value, (targets != -100).sum()
