"""Steps recorded as CUDA graphs: what the device does in them costs the host one launch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from configs.errors import InputError
from data.loading.order import GlobalBatch
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.cuda_graphs.recorder import Recorder
from trainer.cuda_graphs.trial_recording import compare, untraced
from trainer.objective.meter import Meter, in_a_row
from trainer.ranks.collectives import gather_objects, max_, sum_
from trainer.ranks.precision import forget_step
from trainer.step import TrainStep

log = logging.getLogger("convoy")

LENGTHS = (50, 12, 3, 1)
"""Steps of a recording. A launch costs the device about as much as a step of the MNIST network."""
WARMUP_STEPS = 3
"""Steps taken before any is recorded, and one of each further size: libraries load, compilers
compile."""
MAX_SECONDS = 0.1
"""A recording should not take longer: a request to stop waits for its end."""


Rates = tuple[list[float], list[float]]
"""Learning rate and weight of the average for each step of a row."""


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

    Ranks record together, and the same: which steps, and how many in a row, follows from the sizes
    of global batches, from a pace that they agree on, and from whether any of them found that
    steps cannot be recorded.

    Args:
        step: What is recorded; its `max_steps` are taken in a row, fewer if that takes too long.
        loader: Where the samples of a row of steps come from at once.
        recorder: Records them.
        tried: Whether the first recording is compared with a step before the run relies on it.
        required: Whether a run that cannot be recorded is refused, instead of taking its steps as
            they come.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        loader: ResidentLoader,
        recorder: Recorder,
        tried: bool = False,
        required: bool = True,
    ) -> None:
        self.step = step
        self.loader = loader
        self.recorder = recorder
        self.tried = tried
        self.required = required
        self.max_steps = 1  # more when the pace is known
        self.paced = False
        self.given_up = False
        self.warm: dict[int, int] = {}
        self.recordings: dict[tuple[int, int], Recording] = {}

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        while global_batches:
            most = min(len(global_batches), self.max_steps)
            count = next(length for length in LENGTHS if length <= most)
            if self.given_up:
                self.recorder.eagerly(partial(self.step, global_batches[:1], batches))
            else:
                self._take(global_batches[:count])
            global_batches = global_batches[count:]

    def close(self) -> None:
        """Let go of the recordings: NCCL cannot be ended while a graph holds its collectives, be it
        that a traceback holds the graph."""
        self.recordings.clear()
        self.recorder.forget()

    def _take(self, global_batches: Sequence[GlobalBatch]) -> None:
        step = self.step
        hyperparameters = step.next_hyperparameters(len(global_batches))
        recording = self.recordings.get((len(global_batches), global_batches[0].size))
        if recording is not None:
            outcome = self._replay(recording, global_batches, hyperparameters)
        elif self._is_warm(global_batches[0].size):
            outcome = self._begin(global_batches, hyperparameters)
        else:
            outcome = self._execute(global_batches, hyperparameters)
        self.loader.look_ahead(global_batches[0].epoch + 1)  # the host has time for it now
        step.norm = outcome.norm
        for parameter, gradient in zip(step.parameters, outcome.gradients, strict=True):
            parameter.grad = gradient
        step.meter.extend(
            [batch.number for batch in global_batches for _ in batch.micro_batches],
            outcome.losses,
            outcome.scores,
            [size for batch in global_batches for size in batch.micro_batch_sizes]
            if outcome.weights is None
            else outcome.weights,
        )
        taken = None if outcome.taken is None else outcome.taken.tolist()
        step.note(global_batches, taken, hyperparameters)

    def _is_warm(self, size: int) -> bool:
        """Whether global batches of that size may be recorded.

        Where some rank has no sample, another one stands in, which comes from the host.
        """
        enough = max(WARMUP_STEPS, self.step.engine.warmup_steps)
        some = size >= self.step.runtime.world_size
        return some and self.warm.get(size, 0) > 0 and sum(self.warm.values()) >= enough

    def _execute(self, global_batches: Sequence[GlobalBatch], hyperparameters: Rates) -> Outcome:
        size = global_batches[0].size
        self.warm[size] = self.warm.get(size, 0) + 1
        block, ready = self.loader.block(global_batches), self.step.on_device(hyperparameters)
        return self.recorder.eagerly(lambda: self._outcome(global_batches, block, ready))

    def _begin(self, global_batches: Sequence[GlobalBatch], hyperparameters: Rates) -> Outcome:
        """Record steps of a length and a size that are new, and take them; or take them as they
        come, from now on, if any rank could not record them."""
        args = (global_batches, hyperparameters)
        recording, reason = None, self.step.engine.against_recording
        if reason is None:
            recording, reason = untraced(self.step, lambda: self._record(*args))
        if (reason := self._agreed(reason)) is not None or recording is None:
            self._give_up(reason)
            self.step.engine.abandon()
            forget_step(self.step.precision.scaler)
            return self._execute(*args)
        if self.tried:
            outcome, reason = compare(
                self.step, lambda: self._replay(recording, *args), lambda: self._execute(*args)
            )
            if (reason := self._agreed(reason)) is not None:
                self._give_up(reason)
                return outcome
            self.tried = False
        else:
            outcome = self._replay(recording, *args)
        self.recordings[len(global_batches), global_batches[0].size] = recording
        return outcome

    def _agreed(self, reason: str | None) -> str | None:
        """What the first rank that has one has against recording, on every rank."""
        found = gather_objects(self.step.runtime, reason)
        rank = next((rank for rank, reason in enumerate(found) if reason is not None), None)
        if rank is None:
            return None
        return f"rank {rank}: {found[rank]}" if len(found) > 1 else found[rank]

    def _give_up(self, reason: str | None) -> None:
        """Take steps as they come from now on.

        Raises:
            InputError: On every rank alike, if the run has to be recorded.
        """
        self.close()
        if self.required:
            refusal = InputError(
                "compile.capture",
                given=type(self.step.engine.module).__name__,
                expected="a model, a loss and an optimizer that never ask the device for a number",
                remedy=f"Use --compile.capture false: {reason}.",
            )
            refusal.shared = self.step.runtime.world_size > 1
            raise refusal
        log.info(f"steps are taken one by one and not recorded (compile.capture): {reason}")
        self.given_up, self.max_steps = True, 1
        self.step.max_steps, self.step.loader = 1, self.loader

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

    def _record(self, global_batches: Sequence[GlobalBatch], hyperparameters: Rates) -> Recording:
        block, ready = self.loader.block(global_batches), self.step.on_device(hyperparameters)
        outcome, replay = self.recorder.record(lambda: self._outcome(global_batches, block, ready))
        return Recording(block, ready, outcome, replay)

    def _replay(
        self,
        recording: Recording,
        global_batches: Sequence[GlobalBatch],
        hyperparameters: Rates,
    ) -> Outcome:
        self.loader.block(global_batches, out=recording.block)
        recording.hyperparameters.copy_(torch.tensor(hyperparameters), non_blocking=True)
        if not self.paced:
            float(recording.hyperparameters[0, 0])  # waits for the device: once, to learn the pace
            began = time.perf_counter()
        recording.replay()
        # Nobody's time-out sees a collective in a graph: NCCL's watchdog and the flight record have
        # this one for them, which waits for them all.
        sum_(self.step.runtime, torch.zeros(1, device=self.step.runtime.device))
        if not self.paced:
            float(recording.outcome.losses[0])
            self._set_pace(time.perf_counter() - began)
        return recording.outcome

    def _set_pace(self, seconds: float) -> None:
        """Take as many steps in a row as the slowest rank takes in MAX_SECONDS."""
        runtime = self.step.runtime
        slowest = max_(runtime, torch.tensor(seconds, device=runtime.device)).item()
        self.max_steps = max(1, min(self.step.max_steps, int(MAX_SECONDS / slowest)))
        self.paced = True
