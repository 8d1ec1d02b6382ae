"""Steps recorded as CUDA graphs: what the device does in them costs the host one launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.errors import InputError
from data.loading.order import GlobalBatch
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.cuda_graphs.recorder import Recorder
from trainer.objective.meter import Meter, in_a_row
from trainer.step import TrainStep

LENGTHS = (50, 12, 3, 1)
"""Steps of a recording. A launch costs the device about as much as a step of the MNIST network."""
WARMUP_STEPS = 3
"""Steps taken before any is recorded, and one of each further size: libraries load, compilers
compile."""
MAX_SECONDS = 0.1
"""A recording should not take longer: a request to stop waits for its end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What steps leave on the device."""

    losses: Tensor
    """Summed over each micro-batch, one after the other."""
    scores: Tensor
    weights: Tensor | None
    """What both are divided by, if that is not the number of samples."""
    taken: Tensor | None
    """With fp16, which steps were not skipped: bool `(steps,)`."""
    norm: Tensor
    """Of the last step's gradient, before it was clipped."""
    gradients: list[Tensor | None]
    """Where that gradient lies."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Steps that can be taken again, on other samples and at other rates."""

    block: Batch
    hyperparameters: Tensor
    outcome: Outcome
    replay: Callable[[], None]


class RecordedSteps:
    """Takes the steps of a run from recordings; the first few are executed as they come.

    Args:
        step: What is recorded; its `max_steps` are taken in a row, fewer if that takes too long.
        loader: Where the samples of a row of steps come from at once.
        recorder: Records them.
    """

    def __init__(self, step: TrainStep, *, loader: ResidentLoader, recorder: Recorder) -> None:
        self.step = step
        self.loader = loader
        self.recorder = recorder
        self.max_steps = 1  # more when the pace is known
        self.paced = False
        self.warm: dict[int, int] = {}
        self.recordings: dict[tuple[int, int], Recording] = {}

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        while global_batches:
            most = min(len(global_batches), self.max_steps)
            count = next(length for length in LENGTHS if length <= most)
            self._take(global_batches[:count])
            global_batches = global_batches[count:]

    def _take(self, global_batches: Sequence[GlobalBatch]) -> None:
        step, size = self.step, global_batches[0].size
        hyperparameters = step.next_hyperparameters(len(global_batches))
        if not self.warm.get(size) or sum(self.warm.values()) < WARMUP_STEPS:
            self.warm[size] = self.warm.get(size, 0) + 1
            block, ready = self.loader.block(global_batches), step.on_device(hyperparameters)
            outcome = self.recorder.eagerly(lambda: self._outcome(global_batches, block, ready))
        else:
            key = (len(global_batches), size)
            if key not in self.recordings:
                self.recordings[key] = self._record(global_batches, step.on_device(hyperparameters))
            ready = torch.tensor(hyperparameters)
            outcome = self._replay(self.recordings[key], global_batches, ready)
        self.loader.look_ahead(global_batches[0].epoch + 1)  # the host has time for it now
        step.norm = outcome.norm
        for parameter, gradient in zip(step.parameters, outcome.gradients, strict=True):
            parameter.grad = gradient
        step.meter.extend(
            [batch.number for batch in global_batches for _ in batch.micro_batches],
            outcome.losses,
            outcome.scores,
            [micro.size for batch in global_batches for micro in batch.micro_batches]
            if outcome.weights is None
            else outcome.weights,
        )
        taken = None if outcome.taken is None else outcome.taken.tolist()
        step.note(global_batches, taken, hyperparameters)

    def _outcome(
        self, global_batches: Sequence[GlobalBatch], block: Batch, hyperparameters: Tensor
    ) -> Outcome:
        step, meter = self.step, Meter()
        batches = step.engine.stage(block, global_batches)
        with step.engine.without_autograd():
            taken = step.take(global_batches, batches, hyperparameters, meter)
            return Outcome(
                in_a_row(meter.losses),
                in_a_row(meter.scores),
                in_a_row(meter.weights) if meter.weights else None,
                torch.stack(taken) if taken else None,
                step.gradient_norm(),
                [parameter.grad for parameter in step.parameters],
            )

    def _record(self, global_batches: Sequence[GlobalBatch], ready: Tensor) -> Recording:
        block = self.loader.block(global_batches)
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
        self, recording: Recording, global_batches: Sequence[GlobalBatch], ready: Tensor
    ) -> Outcome:
        self.loader.block(global_batches, out=recording.block)
        recording.hyperparameters.copy_(ready, non_blocking=True)
        if not self.paced:
            float(recording.hyperparameters[0, 0])  # waits for the device: once, to learn the pace
            began = time.perf_counter()
        recording.replay()
        if not self.paced:
            float(recording.outcome.losses[0])
            seconds = time.perf_counter() - began
            self.max_steps = max(1, min(self.step.max_steps, int(MAX_SECONDS / seconds)))
            self.paced = True
        return recording.outcome
