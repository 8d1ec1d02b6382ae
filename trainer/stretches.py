"""Several optimizer steps in a row without the host in between: `step.py` at its fastest.

A step of a small network takes the device less time than the host needs to look at it. What the
host decides for every step (learning rate, weight of the average) is decided for a whole stretch
beforehand, and what the device decides (whether fp16 skips a step) is read after it. On a GPU the
steps of a stretch are one CUDA graph. How a run is cut into stretches changes none of its bits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from data.loader import ResidentLoader
from data.sampler import Window
from data.samples import Batch
from trainer.capture import HERE, Recorder
from trainer.explicit import ExplicitPasses
from trainer.flat import untracked
from trainer.meter import Meter
from trainer.precision import loss_scale
from trainer.step import TrainStep
from trainer.torch_schedule import set_rate

LENGTHS = (50, 12, 3, 1)
"""Steps of a recording. A launch costs the device about as much as a step of the MNIST network."""
WARMUP_STEPS = 3
"""Steps taken before any is recorded, and one of each further size: libraries load, compilers
compile."""
MOST_SECONDS = 0.1
"""A stretch should not take longer: a request to stop waits for its end."""


Knobs = tuple[list[float], list[float]] | Tensor
"""Learning rate and weight of the average for each step of a stretch, on the host or the device."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stretch leaves on the device."""

    losses: Tensor
    """Summed over each micro-batch, one after the other."""
    scores: Tensor
    taken: Tensor | None
    """With fp16, which steps were not skipped: bool `(steps,)`."""
    norm: Tensor
    """Of the last step's gradient, before clipping."""
    gradients: list[Tensor | None]
    """Where that gradient lies."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps that can be taken again, on other samples and at other rates."""

    block: Batch
    knobs: Tensor
    outcome: Outcome
    replay: Callable[[], None]


class Stretches:
    """Takes the steps of a run, several at a time as long as nothing is due in between.

    Args:
        step: What a step is.
        most: Steps of a stretch; 1 without a recorder: `step` takes each by itself.
        loader: Where the samples of a stretch come from at once; None: from the stream of batches.
        ahead: Passes that make all batches of a stretch ready together.
        recorder: Records stretches; None: they are executed as they come.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        most: int = 1,
        loader: ResidentLoader | None = None,
        ahead: ExplicitPasses | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        assert loader is not None or (ahead is None and recorder is None)
        self.step = step
        self.most = most if recorder is None else 1  # more when their pace is known
        self.goal = most
        self.paced = recorder is None
        self.loader = loader
        self.ahead = ahead
        self.recorder = recorder
        self.warm: dict[int, int] = {}
        self.recordings: dict[tuple[int, int], Recording] = {}

    def __call__(self, windows: Sequence[Window], batches: Iterator[Batch]) -> None:
        """Train on global batches of one size and one epoch.

        Args:
            windows: At most `most` of them.
            batches: This rank's micro-batches, used unless there is a loader.
        """
        if self.recorder is not None:
            while windows:
                count = next(n for n in LENGTHS if n <= min(len(windows), self.most))
                self._take_recorded(self.recorder, windows[:count])
                windows = windows[count:]
        elif self.most == 1:
            for window in windows:
                self.step(window, batches)
        else:
            knobs = self._knobs(len(windows))
            if self.loader is not None:
                batches = self._slices(windows, self.loader.block(windows))
            ready = self._on_device(knobs) if self._skips else knobs
            with HERE if self.ahead is None else untracked(self.step.runtime.device):
                taken = self._run(windows, batches, self.step.meter, ready)
            self._finish(windows, torch.stack(taken) if taken else None, knobs[0])

    @property
    def _skips(self) -> bool:
        return self.step.precision.scaler.is_enabled()

    def _knobs(self, count: int) -> tuple[list[float], list[float]]:
        """Learning rates and weights of the average of the next steps, if none is skipped."""
        first, average = self.step.progress.step, self.step.ema
        rates = self.step.schedule.preview(range(first, first + count))
        if average is None:
            return rates, [0.0] * count
        return rates, [average.weight(number + 1) for number in range(first, first + count)]

    def _on_device(self, knobs: Knobs) -> Tensor:
        return torch.tensor(knobs).to(self.step.runtime.device, non_blocking=True)

    def _slices(self, windows: Sequence[Window], block: Batch) -> Iterator[Batch]:
        """The micro-batches of a stretch."""
        if self.ahead is not None:
            share = self.step.engine.gradient_scale / windows[0].size
            self.ahead.ahead(*block, share, len(windows))
            yield from itertools.repeat(block)  # which they know already
        start = 0
        for window in windows:
            for micro in window.micro_batches:
                yield block[0][start : start + micro.size], block[1][start : start + micro.size]
                start += micro.size

    def _run(
        self,
        windows: Sequence[Window],
        batches: Iterator[Batch],
        meter: Meter,
        knobs: Knobs,
    ) -> list[Tensor]:
        """The steps; nothing in here looks at the device.

        Returns:
            With fp16, whether each step was taken.
        """
        step, (rates, weights), taken = self.step, knobs, list[Tensor]()
        scaler, average = step.precision.scaler, step.ema
        if self._skips:  # a step that is skipped leaves rate and weight to the next one
            count = torch.zeros(1, dtype=torch.int64, device=step.runtime.device)
        set_to: float | Tensor | None = None
        for number, window in enumerate(windows):
            rate, weight = rates[number], weights[number]
            if self._skips:
                rate, weight = _pick(rates, count), _pick(weights, count)
            if rate is not set_to:
                set_rate(step.optimizer, rate)
                set_to = rate
            step.differentiate(window, batches, meter)
            before = loss_scale(scaler).clone() if self._skips else None
            scaler.step(step.optimizer)
            scaler.update()
            if before is not None:
                taken.append(loss_scale(scaler) >= before)
                count += taken[-1]
                weight = weight * taken[-1]
            if average is not None and average.follows_every_step:
                average.move(step.engine.module, weight)
        return taken

    def _finish(
        self,
        windows: Sequence[Window],
        taken: Tensor | None,
        rates: Sequence[float],
    ) -> None:
        """Take note on the host of what happened. With fp16 this waits for the device."""
        step, progress = self.step, self.step.progress
        kept = [True] * len(windows) if taken is None else taken.tolist()
        step.finish(windows, kept)
        step.learning_rate = rates[sum(kept[:-1])]
        set_rate(step.optimizer, step.learning_rate)
        if step.ema is not None and not step.ema.follows_every_step:
            step.ema.update(step.engine.module, progress.step, progress.window)

    def _take_recorded(self, recorder: Recorder, windows: Sequence[Window]) -> None:
        assert self.loader is not None
        size, knobs = windows[0].size, self._knobs(len(windows))
        if not self.warm.get(size) or sum(self.warm.values()) < WARMUP_STEPS:
            self.warm[size] = self.warm.get(size, 0) + 1
            block, ready = self.loader.block(windows), self._on_device(knobs)
            outcome = recorder.eagerly(lambda: self._outcome(windows, block, ready))
        else:
            key = (len(windows), size)
            if key not in self.recordings:
                self.recordings[key] = self._record(recorder, windows, knobs)
            outcome = self._replay(self.recordings[key], windows, knobs)
        self.loader.look_ahead(windows[0].epoch + 1)  # the device is busy, and the host is not
        self.step.norm = outcome.norm
        for parameter, gradient in zip(self.step.parameters, outcome.gradients, strict=True):
            parameter.grad = gradient
        self.step.meter.extend(
            [window.number for window in windows for _ in window.micro_batches],
            outcome.losses,
            outcome.scores,
            [micro.size for window in windows for micro in window.micro_batches],
        )
        self._finish(windows, outcome.taken, knobs[0])

    def _outcome(self, windows: Sequence[Window], block: Batch, knobs: Tensor) -> Outcome:
        meter = Meter()
        taken = self._run(windows, self._slices(windows, block), meter, knobs)
        return Outcome(
            torch.stack(meter.losses),
            torch.stack(meter.scores),
            torch.stack(taken) if taken else None,
            self.step.gradient_norm(),
            [parameter.grad for parameter in self.step.parameters],
        )

    def _record(self, recorder: Recorder, windows: Sequence[Window], knobs: Knobs) -> Recording:
        assert self.loader is not None
        block, ready = self.loader.block(windows), self._on_device(knobs)
        try:
            outcome, replay = recorder.record(lambda: self._outcome(windows, block, ready))
        except RuntimeError as error:
            raise InputError(
                "compile.capture",
                given=type(self.step.engine.module).__name__,
                expected="a model, a loss and an optimizer that never ask the device for a number",
                remedy=f"Use --compile.capture false. Recording said: {str(error).splitlines()[0]}",
            ) from error
        return Recording(block, ready, outcome, replay)

    def _replay(
        self,
        recording: Recording,
        windows: Sequence[Window],
        knobs: Knobs,
    ) -> Outcome:
        assert self.loader is not None
        self.loader.block(windows, out=recording.block)
        recording.knobs.copy_(torch.tensor(knobs), non_blocking=True)
        if not self.paced:
            float(recording.knobs[0, 0])  # waits for the device: once, to learn the pace
            began = time.perf_counter()
        recording.replay()
        if not self.paced:
            float(recording.outcome.losses[0])
            seconds = time.perf_counter() - began
            self.most = max(1, min(self.goal, int(MOST_SECONDS / seconds)))
            self.paced = True
        return recording.outcome


def _pick(values: list[float] | Tensor, index: Tensor) -> Tensor:
    """An element of a tensor whose index `(1,)` is on the device. (`[index]` would fetch it.)"""
    assert isinstance(values, Tensor)
    return values.index_select(0, index).view(())
