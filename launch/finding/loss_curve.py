"""The losses of a learning-rate range test, and the learning rate that they suggest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

WORTH_A_FALL = 0.02
"""A loss that falls by less than this fraction of itself has not fallen: no suggestion."""


@dataclass(slots=True)
class LossCurve:
    """One value per optimizer step taken, the same on every rank."""

    span: float
    """Time constant of the moving average in steps; its decay is 1 - 1 / span."""
    learning_rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Mean loss of the global batch, before the step at that rate."""
    smoothed: list[float] = field(default_factory=list)
    """Exponential moving average of the losses, its bias towards 0 corrected."""
    stopped: str = "the whole range was tried"
    broken_off: bool = False
    """Whether it ended before the whole range was tried."""
    bad_sample: int | None = None
    """The training sample whose values are not finite, if that was the reason."""

    _average: float = 0.0

    def add(self, learning_rate: float, loss: float) -> float:
        """Append a step, and return the smoothed loss."""
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
    """The rate at which the loss falls fastest per decade: the one to begin with."""
    minimum: float
    """The rate at which the smoothed loss is lowest: already close to divergence."""

    @property
    def tenth(self) -> float:
        """A tenth of the rate at the minimum, another common choice."""
        return self.minimum / 10


def suggest(curve: LossCurve) -> Suggestion | None:
    """Read the rates to try off a curve; None if the loss did not fall.

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
