"""Learning-rate range test: train while the rate grows exponentially, and record the losses.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3. The
smoothing and the rule that ends the test are those of fastai and Lightning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.errors import expect
from configs.schema_training import ScheduleConfig
from data.found import first_not_finite
from data.loading.epoch_schedule import EpochSchedule
from launch.finding.loss_curve import LossCurve
from trainer.build import Workbench
from trainer.checkpoints.state import capture, restore
from trainer.optim.schedule import PureSchedule
from trainer.ranks.collectives import broadcast_object
from trainer.ranks.failures import Diverged


@dataclass(frozen=True, kw_only=True)
class FinderOptions:
    """How a range test is made."""

    min_lr: float = 1e-7
    """Learning rate of the first step."""
    max_lr: float = 1.0
    """Learning rate of the last step."""
    steps: int | Literal["epoch"] = 100
    """Optimizer steps, or `epoch` for one pass over the training set."""
    diverged: float = 4.0
    """Stop when the smoothed loss is this many times its best."""
    smoothing: float = 0.05
    """Time constant of the moving average, as a fraction of the steps."""

    def __post_init__(self) -> None:
        expect(self, "lr_finder.min_lr", 0 < self.min_lr < math.inf, "a number above 0")
        expect(
            self,
            "lr_finder.max_lr",
            self.min_lr < self.max_lr < math.inf,
            f"a number above lr_finder.min_lr={self.min_lr:g}",
        )
        expect(
            self, "lr_finder.steps", self.steps == "epoch" or self.steps >= 10, "epoch, or 10 steps"
        )
        expect(self, "lr_finder.diverged", 1 < self.diverged < math.inf, "a number above 1")
        expect(self, "lr_finder.smoothing", 0 <= self.smoothing <= 0.5, "a fraction up to 0.5")


def range_test(bench: Workbench, options: FinderOptions) -> LossCurve:
    """Train while the learning rate grows from `min_lr` to `max_lr`; every rank calls it.

    Ends early when the loss is not finite or the smoothed one exceeds `diverged` times its best.
    The decision follows from the loss over all ranks, so all of them end at the same step. One
    all-reduce and one wait for the device per step.

    Weights, optimizer, generators and progress are afterwards what they were before.
    """
    state, step = bench.state, bench.step
    schedule = step.schedule
    saved = broadcast_object(bench.runtime, capture(state))  # rank 0 has the whole weights
    try:
        return _climb(bench, options)
    finally:
        step.schedule = schedule
        restore(state, *saved, exact=bench.config.parallel.reduction == "exact")


def _climb(bench: Workbench, options: FinderOptions) -> LossCurve:
    plan, step, progress, meter = bench.plan, bench.step, bench.state.progress, bench.state.meter
    total = plan.epoch_schedule.steps(0) if options.steps == "epoch" else options.steps
    curve = LossCurve(span=max(options.smoothing * total, 1.0))
    step.schedule = rates = exponential_range(options, total)
    meter.collect(bench.runtime)  # empties it
    progress.step = progress.global_batches = 0
    batches = bench.loader.stream(0)
    while progress.step < total:
        before = progress.step
        try:
            step([plan.global_batch(progress.global_batches)], batches)
        except Diverged as reason:
            curve.stopped = str(reason)
            break
        loss = meter.collect(bench.runtime).loss
        if progress.step == before:  # fp16 skipped it: the same rate again
            continue
        rate = rates(before)
        if not math.isfinite(loss):
            number = progress.global_batches - 1
            curve.bad_sample = first_not_finite(bench.data.train, plan.samples(number))
            curve.stopped = f"the loss was not finite at {rate:.1e}"
            if curve.bad_sample is not None:
                curve.stopped += (
                    f", as training sample {curve.bad_sample} holds values that are not"
                )
            break
        smoothed = curve.add(rate, loss)
        if smoothed > options.diverged * min(curve.smoothed):
            curve.stopped = f"the loss was {options.diverged:g} times its best at {rate:.1e}"
            break
    curve.broken_off = len(curve.losses) < total
    return curve


def exponential_range(options: FinderOptions, total_steps: int) -> PureSchedule:
    """A schedule from `min_lr` at step 0 to `max_lr` at the last one, by one factor every step."""
    ratio = options.min_lr / options.max_lr

    def shape(config: ScheduleConfig, progress: float, epochs: float) -> float:
        return math.pow(ratio, 1 - progress)

    epoch_schedule = EpochSchedule(num_samples=total_steps, batch_sizes=((0, 1),))
    return PureSchedule(shape, ScheduleConfig(), options.max_lr, total_steps, epoch_schedule)
