"""A module in another mode or memory layout for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and afterwards every part of it in the mode it was in.

    A user may keep some parts in eval mode while others train.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def contiguous(module: nn.Module) -> Iterator[None]:
    """Make all parameters contiguous, and afterwards give them the memory back that they had.

    Passes that are written out keep matrices transposed, which shows in the last bits of what a
    module computes: an evaluation must say what it would say of the saved weights.
    """
    moved = [(p, p.data) for p in module.parameters() if not p.is_contiguous()]
    for parameter, data in moved:
        parameter.data = data.contiguous()
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data
