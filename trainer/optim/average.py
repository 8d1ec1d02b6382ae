"""Averages of the weights: an exponential moving one, or the plain mean over epochs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from configs.schema_training import TrainConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.networks.copying import copied
from trainer.networks.module_state import resize_buffers


class Average(Protocol):
    """A copy of a model that follows it; evaluated in its place."""

    module: nn.Module
    follows_every_step: bool
    """Whether `move` takes it along from step to step, or `update` now and then will do."""

    def weight(self, num_updates: int) -> float:
        """How much of the weights goes into it after the `num_updates`-th optimizer step."""
        ...

    def move(self, model: nn.Module, weight: float | Tensor) -> None:
        """Go that part of the way to the weights."""
        ...

    def update(self, model: nn.Module, num_updates: int, num_global_batches: int) -> None:
        """After the `num_updates`-th optimizer step, on the `num_global_batches`-th global
        batch."""
        ...


class EMA:
    """A copy of a model whose weights follow the trained ones slowly.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that a short run is not dominated by its initial weights.
    Buffers (batch-norm statistics) are copied as they are.
    """

    follows_every_step = True

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copied(model).requires_grad_(False).eval()

    def weight(self, num_updates: int) -> float:
        return 1 - min(self.decay, (1 + num_updates) / (10 + num_updates))

    def update(self, model: nn.Module, num_updates: int, num_global_batches: int = 0) -> None:
        """Take one step towards `model`, after its `num_updates`-th optimizer step."""
        self.move(model, self.weight(num_updates))

    @torch.no_grad()
    def move(self, model: nn.Module, weight: float | Tensor) -> None:
        averaged: list[Tensor] = [parameter.data for parameter in self.module.parameters()]
        current: list[Tensor] = [parameter.data for parameter in model.parameters()]
        if isinstance(weight, Tensor):
            for mine, theirs in zip(averaged, current, strict=True):
                mine.lerp_(theirs, weight)
        else:
            torch._foreach_lerp_(averaged, current, weight)
        _resize(self.module, model)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


class SWA:
    """The mean of the weights at the ends of epochs (Izmailov et al., arXiv:1803.05407).

    Until `first_epoch` has ended it is the latest weights. Batch-norm statistics are averaged too,
    as torch's AveragedModel does with use_buffers=True, instead of another pass over the data. How
    many have been averaged follows from the position in the run: there is no state to save.
    """

    follows_every_step = False

    def __init__(self, model: nn.Module, first_epoch: int, epoch_schedule: EpochSchedule) -> None:
        self.first_epoch = first_epoch
        self.epoch_schedule = epoch_schedule
        self.module = copied(model).requires_grad_(False).eval()

    def weight(self, num_updates: int) -> float:
        return 0.0

    def move(self, model: nn.Module, weight: float | Tensor) -> None:
        pass

    @torch.no_grad()
    def update(self, model: nn.Module, num_updates: int, num_global_batches: int) -> None:
        """Take the weights into the mean if this global batch ended an epoch."""
        epoch, step, *_ = self.epoch_schedule.locate(num_global_batches)
        before = max(epoch - self.first_epoch, 0)
        if step and epoch >= self.first_epoch:
            return
        _resize(self.module, model)
        mine = [*self.module.parameters(), *self.module.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        for average, current in zip(mine, theirs, strict=True):
            if average.is_floating_point() and before:
                average.lerp_(current, 1 / (before + 1))
            else:
                average.copy_(current)


def _resize(average: nn.Module, model: nn.Module) -> None:
    """Follow buffers that have another shape by now; which ones is asked only then."""
    pairs = zip(average.buffers(), model.buffers(), strict=True)
    if any(mine.shape != theirs.shape for mine, theirs in pairs):
        resize_buffers(average, dict(model.named_buffers()))


def build_average(
    config: TrainConfig, model: nn.Module, epoch_schedule: EpochSchedule
) -> Average | None:
    """The average that a config asks for, as a copy of the raw module.

    Raises:
        InputError: If it cannot be copied.
    """
    if config.ema_decay is not None:
        return EMA(model, config.ema_decay)
    if config.swa_from_epoch is not None:
        return SWA(model, config.swa_from_epoch, epoch_schedule)
    return None
