"""A module in another state for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part is in the mode it was in: a user may freeze some."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def contiguous(module: nn.Module) -> Iterator[None]:
    """Parameters in the layout they have outside of training.

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
