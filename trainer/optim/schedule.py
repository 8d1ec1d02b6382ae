"""The learning rate: a pure function of the optimizer step, or a scheduler of torch's.

To add a pure one, list it in SHAPES; schedulers of torch's are driven by torch_schedule.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from configs.errors import InputError
from configs.registry import any_case, resolve
from configs.schema_training import ScheduleConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.objective.selection import Selection
from trainer.optim.optimizers import set_rate
from trainer.optim.torch_schedule import SCHEDULERS, TorchSchedule, makes_scheduler


class Schedule(Protocol):
    """Sets the learning rate before every step."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    def apply(self, optimizer: torch.optim.Optimizer, step: int, global_batch: int) -> float:
        """Set the rate of the step that comes after `step` finished ones.

        A group's rate is the schedule's times the group's `lr_scale`. Asking again changes nothing.

        Args:
            optimizer: Its groups are set.
            step: Optimizer steps taken, without those that fp16 skipped.
            global_batch: Global batches delivered.

        Returns:
            The rate of a group without a scale.
        """
        ...

    def evaluated(self, values: dict[str, float], global_batch: int) -> None:
        """What an evaluation said after `global_batch` global batches."""
        ...

    def preview(self, steps: Sequence[int]) -> list[float]:
        """The rates of steps in ascending order, as far as they can be told beforehand."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Shape = Callable[[ScheduleConfig, float, float], float]
"""(config, progress after warm-up from 0 to 1, epochs after warm-up) -> fraction of the peak."""


def constant(config: ScheduleConfig, progress: float, epochs: float) -> float:
    return 1.0


def cosine(config: ScheduleConfig, progress: float, epochs: float) -> float:
    """Half a cosine from 1 to final_fraction (Loshchilov and Hutter, arXiv:1608.03983)."""
    return _anneal(1.0, config.final_fraction, progress)


def one_cycle(config: ScheduleConfig, progress: float, epochs: float) -> float:
    """Up to the peak and down again, both as half cosines (Smith and Topin, arXiv:1708.07120)."""
    if progress < config.peak_fraction:
        return _anneal(config.initial_fraction, 1.0, progress / config.peak_fraction)
    falling = (progress - config.peak_fraction) / (1 - config.peak_fraction)
    return _anneal(1.0, config.final_fraction, falling)


def step(config: ScheduleConfig, progress: float, epochs: float) -> float:
    """Times gamma at the end of every `every_epochs` epochs."""
    return math.pow(config.gamma, math.floor(epochs / config.every_epochs + 1e-9))


def exponential(config: ScheduleConfig, progress: float, epochs: float) -> float:
    """Times gamma per epoch, smoothly."""
    return math.pow(config.gamma, epochs)


SHAPES: dict[str, Shape] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "step": step,
    "exponential": exponential,
}


@dataclass(frozen=True, slots=True)
class PureSchedule:
    """Learning rate of the optimizer step that comes after `step` finished ones: no state."""

    shape: Shape
    config: ScheduleConfig
    peak: float
    total_steps: int
    epoch_schedule: EpochSchedule

    def __call__(self, step: int) -> float:
        warmup = self.config.warmup_steps
        if step < warmup:
            return self.peak * ((step + 1) / warmup)
        after = step - warmup
        # The last step of the run is at progress 1.
        progress = min(after / max(self.total_steps - warmup - 1, 1), 1.0)
        epochs = self.epoch_schedule.epochs(step) - (
            self.epoch_schedule.epochs(warmup) if warmup else 0.0
        )
        return self.peak * self.shape(self.config, progress, epochs)

    def apply(self, optimizer: torch.optim.Optimizer, step: int, global_batch: int) -> float:
        rate = self(step)
        set_rate(optimizer, rate)
        return rate

    def evaluated(self, values: dict[str, float], global_batch: int) -> None:
        pass

    def preview(self, steps: Sequence[int]) -> list[float]:
        if self.shape is constant and steps and steps[0] >= self.config.warmup_steps:
            return [self.peak] * len(steps)
        return [self(step) for step in steps]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def is_pure(config: ScheduleConfig) -> bool:
    """Whether the learning rate is a function of the step alone, known beforehand."""
    return not makes_scheduler(_find(config.name))


def _find(name: str) -> Callable[..., Any]:
    table: dict[str, Callable[..., Any]] = {**SHAPES, **SCHEDULERS}
    return resolve("schedule.name", any_case(name, table), table)


def build_schedule(
    config: ScheduleConfig,
    *,
    optimizer: torch.optim.Optimizer,
    peak: float,
    total_steps: int,
    epoch_schedule: EpochSchedule,
    selection: Selection,
    evaluate_every: int | None,
) -> Schedule:
    """The schedule of a run of `total_steps` optimizer steps.

    Args:
        config: Name and arguments.
        optimizer: What schedulers of torch's look at: its hyperparameters.
        peak: The learning rate of the config.
        total_steps: Optimizer steps of the run.
        epoch_schedule: Global batches of the epochs.
        selection: The metric that ReduceLROnPlateau watches.
        evaluate_every: Epochs between evaluations, if there are any before the end.

    Raises:
        InputError: For an unknown name, arguments that a scheduler does not take, or a warm-up that
            outlasts the run.
    """
    shape = _find(config.name)
    if config.warmup_steps >= total_steps and config.warmup_steps:
        raise InputError(
            "schedule.warmup_steps",
            given=config.warmup_steps,
            expected=f"fewer than the {total_steps} steps of the run",
        )
    if makes_scheduler(shape):
        return TorchSchedule(
            shape,
            config,
            optimizer,
            peak=peak,
            total_steps=total_steps,
            epoch_schedule=epoch_schedule,
            selection=selection,
            evaluate_every=evaluate_every,
        )
    if config.kwargs and config.name in SHAPES:
        raise InputError(
            "schedule.kwargs",
            given=config.kwargs,
            expected=f"none with schedule.name={config.name}, which has keys of its own",
            remedy="See schedule.final_fraction, peak_fraction, every_epochs and gamma.",
        )
    return PureSchedule(shape, config, peak, total_steps, epoch_schedule)


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
