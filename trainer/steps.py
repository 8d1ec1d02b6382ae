"""What the loop asks for steps: the train step itself, or recordings of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from data.loading.order import GlobalBatch
from data.samples import Batch


class Steps(Protocol):
    """Takes the steps of a run: the train step itself, or recordings of it."""

    max_steps: int
    """Steps in a row at most."""

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        """Train on global batches of one size and one epoch, `max_steps` at most.

        Args:
            global_batches: One for each step.
            batches: This rank's micro-batches of them, where the step has no loader of its own.
        """
        ...

    def close(self) -> None:
        """After the last step, before the ranks part."""
        ...
