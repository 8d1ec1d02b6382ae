"""When epochs begin: the global batches of a run, counted from 0, in epochs counted from 0."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple


class _Stage(NamedTuple):
    """Epochs with the same size of the global batch."""

    epoch: int
    """The first one."""
    window: int
    """Global batches before it."""
    size: int
    """Samples of a global batch."""
    steps: int
    """Global batches of an epoch."""


class Place(NamedTuple):
    """Where a global batch lies."""

    epoch: int
    step: int
    """Global batches of its epoch before it."""
    steps: int
    """Global batches of its epoch."""
    size: int
    """Samples of a global batch of its epoch, except maybe the last one."""


@dataclass(frozen=True, kw_only=True)
class Calendar:
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
            window = 0
            if found:
                window = found[0].window + (epoch - found[0].epoch) * found[0].steps
            steps = (self.num_samples + rounding) // size
            found.insert(0, _Stage(epoch, window, size, steps))
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

    def place(self, window: int) -> Place:
        """Where a global batch lies; also: epochs ended before it, and global batches since."""
        for stage in self._stages:
            if stage.window <= window:
                epochs, step = divmod(window - stage.window, stage.steps)
                return Place(stage.epoch + epochs, step, stage.steps, stage.size)
        raise AssertionError(window)

    def epochs_ended(self, window: int) -> int | None:
        """How many epochs have ended if one has just done so after `window` global batches."""
        place = self.place(window)
        return place.epoch if place.step == 0 and window else None

    def epochs(self, window: int) -> float:
        """Epochs that `window` global batches are."""
        place = self.place(window)
        return place.epoch + place.step / place.steps

    def windows_before(self, epoch: int) -> int:
        """Global batches in all epochs before this one."""
        stage = self._stage(epoch)
        return stage.window + (epoch - stage.epoch) * stage.steps

    def samples_before(self, window: int) -> int:
        """Samples delivered in `window` global batches."""
        epoch, step, _, size = self.place(window)
        samples = step * size
        for stage in self._stages:
            if stage.epoch < epoch:
                samples += (epoch - stage.epoch) * min(self.num_samples, stage.steps * stage.size)
                epoch = stage.epoch
        return samples
