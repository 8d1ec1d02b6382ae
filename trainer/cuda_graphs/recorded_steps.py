"""Stretches recorded as CUDA graphs: what the device does in them costs the host one launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from data.loading.loader import ResidentLoader
from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.cuda_graphs.recorder import Recorder
from trainer.objective.meter import Meter
from trainer.step import TrainStep
from trainer.stretches import StepHyperparameters, Stretches, slices

LENGTHS = (50, 12, 3, 1)
"""Steps of a recording. A launch costs the device about as much as a step of the MNIST network."""
WARMUP_STEPS = 3
"""Steps taken before any is recorded, and one of each further size: libraries load, compilers
compile."""
MOST_SECONDS = 0.1
"""A stretch should not take longer: a request to stop waits for its end."""


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
    hyperparameters: Tensor
    outcome: Outcome
    replay: Callable[[], None]


class RecordedStretches(Stretches):
    """Takes the steps of a run from recordings; the first few are executed as they come.

    Args:
        step: What a step is.
        most: Steps of a stretch at most: fewer if that many would take too long.
        loader: Where the samples of a stretch come from at once.
        recorder: Records them.
        ahead: Passes that make all batches of a stretch ready together.
    """

    loader: ResidentLoader

    def __init__(
        self,
        step: TrainStep,
        *,
        most: int,
        loader: ResidentLoader,
        recorder: Recorder,
        ahead: ExplicitPasses | None = None,
    ) -> None:
        super().__init__(step, most=1, loader=loader, ahead=ahead)  # more when the pace is known
        self.goal = most
        self.paced = False
        self.recorder = recorder
        self.warm: dict[int, int] = {}
        self.recordings: dict[tuple[int, int], Recording] = {}

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        while global_batches:
            count = next(n for n in LENGTHS if n <= min(len(global_batches), self.most))
            self._take(global_batches[:count])
            global_batches = global_batches[count:]

    def _take(self, global_batches: Sequence[GlobalBatch]) -> None:
        size, hyperparameters = global_batches[0].size, self._knobs(len(global_batches))
        if not self.warm.get(size) or sum(self.warm.values()) < WARMUP_STEPS:
            self.warm[size] = self.warm.get(size, 0) + 1
            block, ready = self.loader.block(global_batches), self._on_device(hyperparameters)
            outcome = self.recorder.eagerly(lambda: self._outcome(global_batches, block, ready))
        else:
            key = (len(global_batches), size)
            if key not in self.recordings:
                self.recordings[key] = self._record(global_batches, hyperparameters)
            outcome = self._replay(self.recordings[key], global_batches, hyperparameters)
        self.loader.look_ahead(
            global_batches[0].epoch + 1
        )  # the device is busy, and the host is not
        self.step.norm = outcome.norm
        for parameter, gradient in zip(self.step.parameters, outcome.gradients, strict=True):
            parameter.grad = gradient
        self._remember(global_batches, outcome.losses, outcome.scores)
        self._finish(global_batches, outcome.taken, hyperparameters[0])

    def _outcome(
        self, global_batches: Sequence[GlobalBatch], block: Batch, hyperparameters: Tensor
    ) -> Outcome:
        if self.ahead is not None:
            losses, scores, taken = self._run_ahead(
                self.ahead, global_batches, block, hyperparameters
            )
        else:
            meter = Meter()
            taken = self._run(
                global_batches,
                self._following(slices(global_batches, block), meter),
                hyperparameters,
            )
            losses, scores = torch.stack(meter.losses), torch.stack(meter.scores)
        return Outcome(
            losses,
            scores,
            torch.stack(taken) if taken else None,
            self.step.gradient_norm(),
            [parameter.grad for parameter in self.step.parameters],
        )

    def _record(
        self, global_batches: Sequence[GlobalBatch], hyperparameters: StepHyperparameters
    ) -> Recording:
        block, ready = self.loader.block(global_batches), self._on_device(hyperparameters)
        try:
            outcome, replay = self.recorder.record(
                lambda: self._outcome(global_batches, block, ready)
            )
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
        global_batches: Sequence[GlobalBatch],
        hyperparameters: StepHyperparameters,
    ) -> Outcome:
        self.loader.block(global_batches, out=recording.block)
        recording.hyperparameters.copy_(torch.tensor(hyperparameters), non_blocking=True)
        if not self.paced:
            float(recording.hyperparameters[0, 0])  # waits for the device: once, to learn the pace
            began = time.perf_counter()
        recording.replay()
        if not self.paced:
            float(recording.outcome.losses[0])
            seconds = time.perf_counter() - began
            self.most = max(1, min(self.goal, int(MOST_SECONDS / seconds)))
            self.paced = True
        return recording.outcome
