"""When something is due: every so many steps, at the end of every so many epochs, at the end."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema_training import TrainConfig
from trainer.checkpoints.state import Progress

NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a run stands after some steps: between two global batches."""

    step: int
    """Optimizer steps taken."""
    stepped: bool
    """Whether any was taken since the boundary before; fp16 may have skipped them."""
    ended: int | None
    """Epochs that have ended, at the end of one."""

    def steps_due(self, every: int | None) -> bool:
        """Whether this is where something is due that comes every so many steps."""
        return self.stepped and is_due(self.step, every)

    def epochs_due(self, every: int | None) -> bool:
        """Whether this is where something is due that comes every so many epochs."""
        return is_due(self.ended, every)


def is_due(count: int | None, every: int | None) -> bool:
    return count is not None and every is not None and count % every == 0


def steps_until(step: int, every: int | None) -> int:
    """Steps after `step` finished ones to the next at which something is due."""
    return NEVER if every is None else every - step % every


@dataclass(frozen=True, slots=True)
class End:
    """Where a run ends: after its epochs, after `max_steps`, or when nothing is gained any more."""

    progress: Progress
    train: TrainConfig
    total_global_batches: int

    @property
    def reached(self) -> bool:
        progress, train = self.progress, self.train
        return (
            self.steps_left <= 0 or (train.patience or NEVER) <= progress.evaluations_without_gain
        )

    @property
    def steps_left(self) -> int:
        """Steps to the end if fp16 skips none."""
        progress = self.progress
        return min(
            self.total_global_batches - progress.global_batches,
            (self.train.max_steps or NEVER) - progress.step,
        )
