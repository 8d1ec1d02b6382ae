"""Learning-rate range test: the loss while the rate grows exponentially, and what to read off it.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3. The
smoothing and the rule that ends the test are those of fastai and Lightning.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from configs.errors import expect
from configs.imports import import_extra
from configs.schema_training import ScheduleConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.build import Workbench
from trainer.checkpoints.atomic_files import replacing, write_atomically
from trainer.checkpoints.state import capture, restore
from trainer.optim.schedule import PureSchedule
from trainer.ranks.collectives import broadcast_object
from trainer.ranks.failures import Diverged

WORTH_A_FALL = 0.02
"""A loss that falls by less than this fraction of itself has not fallen: no suggestion."""


@dataclass(frozen=True, kw_only=True)
class FinderOptions:
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


@dataclass(slots=True)
class Curve:
    """One value per optimizer step taken, the same on every rank."""

    span: float
    """Time constant of the moving average in steps; its decay is 1 - 1 / span."""
    learning_rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean loss of the global batch, before the step at that rate."""
    smoothed: list[float] = field(default_factory=list)
    """Exponential moving average of the losses, its bias towards 0 corrected."""
    stopped: str = "the whole range was tried"

    _average: float = 0.0

    def add(self, learning_rate: float, loss: float) -> float:
        """Append a step; returns the smoothed loss."""
        decay = 1 - 1 / self.span
        self._average = decay * self._average + (1 - decay) * loss
        self.learning_rates.append(learning_rate)
        self.losses.append(loss)
        self.smoothed.append(self._average / (1 - decay ** len(self.losses)))
        return self.smoothed[-1]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Learning rates read off a curve."""

    steepest: float
    """Where the loss falls fastest per decade: the rate to begin with."""
    minimum: float
    """Where the smoothed loss is lowest: already close to divergence."""

    @property
    def tenth(self) -> float:
        return self.minimum / 10


def range_test(bench: Workbench, options: FinderOptions) -> Curve:
    """Train while the learning rate grows from `min_lr` to `max_lr`; every rank calls it.

    Ends early when the loss is not finite or the smoothed one exceeds `diverged` times its best.
    The decision follows from the loss over all ranks, so all of them end at the same step. One
    all-reduce and one wait for the device per step.

    Weights, optimizer, generators and progress are afterwards what they were before.
    """
    state, step = bench.state, bench.step
    module = state.engine.module
    schedule, training = step.schedule, module.training
    saved = broadcast_object(bench.runtime, capture(state))  # rank 0 has the whole weights
    try:
        module.train()
        return _climb(bench, options)
    finally:
        step.schedule = schedule
        module.train(training)
        restore(state, *saved, exact=bench.config.parallel.reduction == "exact")


def _climb(bench: Workbench, options: FinderOptions) -> Curve:
    plan, step, progress, meter = bench.plan, bench.step, bench.state.progress, bench.state.meter
    total = plan.epoch_schedule.steps(0) if options.steps == "epoch" else options.steps
    curve = Curve(span=max(options.smoothing * total, 1.0))
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
            curve.stopped = f"the loss was not finite at {rate:.1e}"
            break
        smoothed = curve.add(rate, loss)
        if smoothed > options.diverged * min(curve.smoothed):
            curve.stopped = f"the loss was {options.diverged:g} times its best at {rate:.1e}"
            break
    return curve


def exponential_range(options: FinderOptions, total_steps: int) -> PureSchedule:
    """From `min_lr` at step 0 to `max_lr` at the last one, by the same factor every step."""
    ratio = options.min_lr / options.max_lr

    def shape(config: ScheduleConfig, progress: float, epochs: float) -> float:
        return math.pow(ratio, 1 - progress)

    epoch_schedule = EpochSchedule(num_samples=total_steps, batch_sizes=((0, 1),))
    return PureSchedule(shape, ScheduleConfig(), options.max_lr, total_steps, epoch_schedule)


def suggest(curve: Curve) -> Suggestion | None:
    """Read a curve, or None if the loss did not fall.

    The slope is that of a least-squares line through the smoothed losses within one time constant
    on either side (a first-order Savitzky-Golay filter): the difference of two neighbours would be
    the noise of a single batch. The average lags behind the losses by span - 1 steps, so the loss
    itself was steepest that much earlier.
    """
    smoothed = np.asarray(curve.smoothed)
    reach = max(round(curve.span), 1)
    if len(smoothed) <= 2 * reach + 1:
        return None
    offsets = np.arange(-reach, reach + 1)
    slopes = np.correlate(smoothed, offsets / np.sum(offsets**2), mode="valid")
    lowest = int(np.argmin(smoothed))
    falling = slopes[: max(lowest - reach, 0) + 1]  # slopes[i] belongs to step i + reach
    steepest = int(np.argmin(falling))
    if smoothed[lowest] > (1 - WORTH_A_FALL) * smoothed[0] or falling[steepest] >= 0:
        return None
    lag = round(curve.span - 1)
    return Suggestion(
        steepest=curve.learning_rates[steepest + reach - lag],
        minimum=curve.learning_rates[lowest],
    )


def write_curve(path: Path, curve: Curve, suggestion: Suggestion | None) -> None:
    """The curve as JSON, for scripts."""
    found = None
    if suggestion is not None:
        found = asdict(suggestion) | {"minimum_over_10": suggestion.tenth}
    content = {
        "learning_rates": curve.learning_rates,
        "losses": curve.losses,
        "smoothed": curve.smoothed,
        "stopped": curve.stopped,
        "suggestion": found,
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def draw_curve(path: Path, curve: Curve, suggestion: Suggestion | None) -> None:
    """The curve as a PNG picture.

    Raises:
        InputError: If matplotlib is not installed.
    """
    # Not pyplot: it has a global state, and may look for a screen.
    figure = import_extra("matplotlib.figure", "report").Figure(
        figsize=(7, 4.5), layout="constrained"
    )
    axes = figure.add_subplot()
    rates = curve.learning_rates
    axes.plot(rates, curve.losses, color="0.8", linewidth=1, label="loss of each batch")
    axes.plot(rates, curve.smoothed, color="tab:blue", label="smoothed")
    if suggestion is not None:
        steepest, tenth = suggestion.steepest, suggestion.tenth
        axes.axvline(
            steepest, color="tab:red", linestyle="--", label=f"steepest descent {steepest:.1e}"
        )
        axes.axvline(tenth, color="tab:green", linestyle=":", label=f"minimum / 10 {tenth:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title="Range test")
    if curve.smoothed:
        low, high = min(curve.smoothed), curve.smoothed[0]
        axes.set_ylim(max(low - 0.2 * high, 0), 1.5 * high)  # the explosion at the end is not news
        axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
