"""The order of an optimizer step, for one step or for several in a row.

A step of a small network takes the device less time than the host needs to look at it. So steps are
taken in a row where nothing is due between them: what the host decides for each (learning rate,
weight of the average) is decided for all of them beforehand, and what the device decides (whether
fp16 skips a step) is read afterwards. How a run is cut into rows of steps changes none of its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.augment import Augment, as_is
from data.loading.order import GlobalBatch
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.checkpoints.state import Progress
from trainer.closure import Closure, total_over_ranks
from trainer.engines.dtensor import full_tensor
from trainer.engines.engine import Engine
from trainer.networks.trained_parts import TrainedParts
from trainer.objective.meter import Meter
from trainer.optim.average import Average
from trainer.optim.fused import Kernel
from trainer.optim.optimizers import needs_closure, set_rate
from trainer.optim.schedule import Schedule
from trainer.ranks.failures import Diverged
from trainer.ranks.precision import Precision, loss_scale
from trainer.ranks.runtime import Runtime

HOPELESS_SKIPS = 100
"""fp16 steps skipped in a row after which the loss is taken for diverged."""

Hyperparameters = tuple[list[float], list[float]] | Tensor
"""Learning rate and weight of the average for each step of a row, on the host or the device."""


class TrainStep:
    """Accumulate, reduce, unscale, clip, check finite, step, then move the average.

    The gradient is that of the summed loss divided by the number of samples actually in the global
    batch, or by the weight of all that is in it where the loss has one, on every world size, with
    every accumulation split, in a short last batch too.

    Args:
        engine: Runs the model.
        optimizer: Whose hyperparameters are set.
        kernel: What is stepped: the optimizer, or a kernel in its place.
        schedule: The learning rate.
        precision: Autocast type and GradScaler.
        augment: Changes a micro-batch before it is learned from.
        average: Average of the weights, if there is one.
        meter: Remembers losses and scores.
        progress: Counts steps and global batches.
        clip_norm: Largest norm of the gradient.
        runtime: This rank.
        parts: Says what is trained in which epoch; None: the same in all of them.
        max_steps: Steps in a row at most. More than one only where neither schedule nor optimizer
            has to know whether fp16 has skipped a step.
        loader: Where the samples of a row of steps come from at once; None: from the stream.
        watched: Batches of the loader, watched by a profiler.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        kernel: torch.optim.Optimizer | Kernel,
        schedule: Schedule,
        precision: Precision,
        augment: Augment,
        average: Average | None,
        meter: Meter,
        progress: Progress,
        clip_norm: float | None,
        runtime: Runtime,
        parts: TrainedParts | None = None,
        max_steps: int = 1,
        loader: ResidentLoader | None = None,
        watched: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches,
    ) -> None:
        self.engine = engine
        self.optimizer = optimizer
        self.kernel: torch.optim.Optimizer = kernel  # type: ignore[assignment] # as good as one
        self.schedule = schedule
        self.precision = precision
        self.augment = augment
        self.average = average
        self.meter = meter
        self.progress = progress
        self.clip_norm = clip_norm
        self.parts = parts or TrainedParts(engine.module, {})
        self.runtime = runtime
        self.max_steps = max_steps
        self.loader = loader
        self.watched = watched
        self.needs_closure = needs_closure(optimizer)
        self.learning_rate = 0.0
        """Of the latest step."""
        self.parameters = engine.trained()
        self.norm: Tensor | None = None
        """Of the latest gradient before it was clipped, if that is known already."""

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        """Take the steps, then note on the host what happened; with fp16 this waits for the
        device."""
        self.parts.enter(global_batches[0].epoch)
        hyperparameters = self.next_hyperparameters(len(global_batches))
        ready: Hyperparameters = hyperparameters
        if self.precision.scaler.is_enabled() and self.max_steps > 1:
            ready = self.on_device(hyperparameters)
        if self.loader is not None:
            batches = self.watched(self._staged(self.loader, global_batches))
        with self.engine.without_autograd():
            taken = self.take(global_batches, batches, ready, self.meter)
        kept = torch.stack(taken).tolist() if taken else None  # waits for the device
        self.note(global_batches, kept, hyperparameters)

    def close(self) -> None:
        """There is nothing to let go of."""

    def next_hyperparameters(self, count: int) -> tuple[list[float], list[float]]:
        """Learning rates and weights of the average of the next steps, if none is skipped."""
        progress, average = self.progress, self.average
        first = progress.step
        if self.max_steps == 1:  # a scheduler of torch's may set more than the rate
            rates = [self.schedule.apply(self.optimizer, first, progress.global_batches)]
        else:
            rates = self.schedule.preview(range(first, first + count))
        if average is None:
            return rates, [0.0] * count
        return rates, [average.weight(number + 1) for number in range(first, first + count)]

    def _staged(
        self, loader: ResidentLoader, global_batches: Sequence[GlobalBatch]
    ) -> Iterator[Batch]:
        """The micro-batches of a row of steps, all gathered when the first is asked for."""
        yield from self.engine.stage(loader.block(global_batches), global_batches)

    def on_device(self, hyperparameters: Hyperparameters) -> Tensor:
        return torch.tensor(hyperparameters).to(self.runtime.device, non_blocking=True)

    def take(
        self,
        global_batches: Sequence[GlobalBatch],
        batches: Iterator[Batch],
        hyperparameters: Hyperparameters,
        meter: Meter,
    ) -> list[Tensor]:
        """The steps. Nothing in here waits for the device, so they may be recorded.

        Args:
            global_batches: One for each step.
            batches: This rank's micro-batches of them.
            hyperparameters: Of each step; on the device where fp16 may skip one of several.
            meter: Remembers losses and scores.

        Returns:
            With fp16, whether each step was taken: bool scalars on the device.
        """
        rates, weights = hyperparameters
        scaler, average, taken = self.precision.scaler, self.average, list[Tensor]()
        picks = scaler.is_enabled() and isinstance(hyperparameters, Tensor)
        if picks:  # a step that is skipped leaves rate and weight to the next one
            count = torch.zeros(1, dtype=torch.int64, device=self.runtime.device)
        set_to: float | Tensor | None = None
        for number, global_batch in enumerate(global_batches):
            rate, weight = rates[number], weights[number]
            if picks:
                rate, weight = _pick(rates, count), _pick(weights, count)
            if rate is not set_to:
                set_rate(self.optimizer, rate)
                set_to = rate
            if self.needs_closure:
                self._step_by_closure(global_batch, batches, meter)
            else:
                self.differentiate(global_batch, batches, meter)
                before = loss_scale(scaler).clone() if scaler.is_enabled() else None
                scaler.step(self.kernel)  # checks finite itself: with fp16 it may skip
                scaler.update()
                if before is not None:
                    taken.append(loss_scale(scaler) >= before)
                    weight = weight * taken[-1]
                    if picks:
                        count += taken[-1]
            if average is not None and average.follows_every_step:
                average.move(self.engine.module, weight)
        return taken

    def differentiate(
        self, global_batch: GlobalBatch, batches: Iterator[Batch], meter: Meter
    ) -> None:
        """The gradient of one global batch, as the optimizer uses it, to `.grad`."""
        self.engine.clear()
        loss_weight = self.engine.gradient_scale / global_batch.size
        weights: list[Tensor] = []
        for micro in global_batch.micro_batches:
            batch = next(batches)
            if self.augment is not as_is:
                batch = Batch(*self.augment(batch.inputs, batch.targets), batch.size)
            with self.engine.micro_batch(global_batch, micro):
                loss, score, weight = self.engine.differentiate(batch, loss_weight)
            meter.add(global_batch.number, loss, score, micro.size if weight is None else weight)
            if weight is not None:
                weights.append(weight)
        self.engine.reduce()
        if weights:
            self._divide_by(total_over_ranks(weights, global_batch, self.runtime), global_batch)
        self.norm = None
        self.precision.scaler.unscale_(self.kernel)
        if self.clip_norm is not None:
            self.norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)

    def _divide_by(self, weight: Tensor, global_batch: GlobalBatch) -> None:
        """Make the gradient that of a mean over a weight, not over samples; of nothing it is 0."""
        factor = (global_batch.size / weight).where(weight > 0, 0.0).to(torch.float32)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_mul_(gradients, factor)

    def _step_by_closure(
        self, global_batch: GlobalBatch, batches: Iterator[Batch], meter: Meter
    ) -> None:
        """A step of an optimizer that asks for the loss several times, as LBFGS does."""
        closure = Closure(self, global_batch, batches, self.engine.module, self.runtime)
        self.optimizer.step(closure)  # type: ignore[arg-type] # returns a tensor
        meter.merge(closure.meter)
        self.norm = closure.norm

    def note(
        self,
        global_batches: Sequence[GlobalBatch],
        taken: Sequence[bool] | None,
        hyperparameters: tuple[list[float], list[float]],
    ) -> None:
        """Count steps; of those that fp16 skipped neither step, rate nor average takes note.

        Args:
            global_batches: One for each step.
            taken: Which steps were not skipped; None: all of them.
            hyperparameters: Of each step, if none had been skipped.

        Raises:
            Diverged: If it has skipped too many in a row.
        """
        kept = [True] * len(global_batches) if taken is None else taken
        for global_batch, stepped in zip(global_batches, kept, strict=True):
            self._count(global_batch, stepped=stepped)
        self.learning_rate = hyperparameters[0][sum(kept[:-1])]
        set_rate(self.optimizer, self.learning_rate)
        average, progress = self.average, self.progress
        if average is not None and not average.follows_every_step:
            average.update(self.engine.module, progress.step, progress.global_batches)

    def _count(self, global_batch: GlobalBatch, *, stepped: bool) -> None:
        progress = self.progress
        progress.global_batches += 1
        if stepped:
            progress.step += 1
            progress.skipped_in_a_row = 0
            return
        self.meter.forget(global_batch.number)
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        if progress.skipped_in_a_row >= HOPELESS_SKIPS:
            raise Diverged(
                f"{HOPELESS_SKIPS} fp16 steps in a row had gradients that are not finite, "
                f"after step {progress.step}: lower optimizer.lr, or use bf16"
            )

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the latest gradient before it was clipped; every rank asks for it."""
        norm = self.norm
        if norm is None:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        return full_tensor(norm)


def _pick(values: list[float] | Tensor, index: Tensor) -> Tensor:
    """An element of a tensor whose index `(1,)` is on the device. (`[index]` would fetch it.)"""
    assert isinstance(values, Tensor)
    return values.index_select(0, index).view(())
