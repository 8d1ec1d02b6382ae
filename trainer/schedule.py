"""The learning rate as a pure function of the optimizer step. To add one, list it in SHAPES."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from configs.errors import InputError
from configs.schema_training import ScheduleConfig
from trainer.registry import resolve

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
class Schedule:
    """Learning rate of the optimizer step that comes after `step` finished ones."""

    shape: Shape
    config: ScheduleConfig
    peak: float
    total_steps: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        warmup = self.config.warmup_steps
        if step < warmup:
            return self.peak * ((step + 1) / warmup)
        after = step - warmup
        # The last step of the run is at progress 1.
        progress = min(after / max(self.total_steps - warmup - 1, 1), 1.0)
        return self.peak * self.shape(self.config, progress, after / self.steps_per_epoch)


def build_schedule(
    config: ScheduleConfig, *, peak: float, total_steps: int, steps_per_epoch: int
) -> Schedule:
    """The schedule of a run of `total_steps` optimizer steps.

    Raises:
        InputError: For an unknown name or a warm-up that outlasts the run.
    """
    shape = resolve("schedule.name", config.name, SHAPES)
    if config.warmup_steps >= total_steps and config.warmup_steps:
        raise InputError(
            "schedule.warmup_steps",
            given=config.warmup_steps,
            expected=f"fewer than the {total_steps} steps of the run",
        )
    return Schedule(shape, config, peak, total_steps, steps_per_epoch)


def _anneal(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
