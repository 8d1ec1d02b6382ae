"""When epochs begin: the global batches of a run, counted from 0, in epochs counted from 0."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple


class _Stage(NamedTuple):
    """Epochs with the same size of the global batch."""

    epoch: int
    """The first one."""
    global_batch: int
    """Global batches before it."""
    size: int
    """Samples of a global batch."""
    steps: int
    """Global batches of an epoch."""


class EpochPosition(NamedTuple):
    """The position of a global batch in its epoch."""

    epoch: int
    step: int
    """Global batches of its epoch before it."""
    steps: int
    """Global batches of its epoch."""
    size: int
    """Samples of a global batch of its epoch, except maybe the last one."""


@dataclass(frozen=True, kw_only=True)
class EpochSchedule:
    """A pure function from the number of a global batch to its place in an epoch, and back.

    Args:
        num_samples: Size of the training set.
        batch_sizes: (epoch, samples of a global batch from it on), ascending, the first epoch 0.
        drop_last: Leave out the short last batch of an epoch.
    """

    num_samples: int
    batch_sizes: tuple[tuple[int, int], ...]
    drop_last: bool = False

    @functools.cached_property
    def _stages(self) -> list[_Stage]:
        """The latest one first."""
        found: list[_Stage] = []
        for epoch, size in self.batch_sizes:
            rounding = 0 if self.drop_last else size - 1
            global_batch = 0
            if found:
                global_batch = found[0].global_batch + (epoch - found[0].epoch) * found[0].steps
            steps = (self.num_samples + rounding) // size
            found.insert(0, _Stage(epoch, global_batch, size, steps))
        return found

    def _stage(self, epoch: int) -> _Stage:
        return next(stage for stage in self._stages if stage.epoch <= epoch)

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the global batches of a run, each once, in ascending order."""
        return tuple(sorted({stage.size for stage in self._stages}))

    def steps(self, epoch: int) -> int:
        """Global batches in that epoch."""
        return self._stage(epoch).steps

    def locate(self, global_batch: int) -> EpochPosition:
        """The position of a global batch: the epochs that ended before it, and the steps since."""
        for stage in self._stages:
            if stage.global_batch <= global_batch:
                epochs, step = divmod(global_batch - stage.global_batch, stage.steps)
                return EpochPosition(stage.epoch + epochs, step, stage.steps, stage.size)
        raise AssertionError(global_batch)

    def epochs_ended(self, global_batch: int) -> int | None:
        """How many epochs have ended if one has just done so after `global_batch` global
        batches."""
        position = self.locate(global_batch)
        return position.epoch if position.step == 0 and global_batch else None

    def epochs(self, global_batch: int) -> float:
        """Epochs that `global_batch` global batches are."""
        position = self.locate(global_batch)
        return position.epoch + position.step / position.steps

    def global_batches_before(self, epoch: int) -> int:
        """Global batches in all epochs before this one."""
        stage = self._stage(epoch)
        return stage.global_batch + (epoch - stage.epoch) * stage.steps

    def samples_before(self, global_batch: int) -> int:
        """Samples delivered in `global_batch` global batches."""
        epoch, step, _, size = self.locate(global_batch)
        samples = step * size
        for stage in self._stages:
            if stage.epoch < epoch:
                samples += (epoch - stage.epoch) * min(self.num_samples, stage.steps * stage.size)
                epoch = stage.epoch
        return samples
