"""The order of one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.augment import Augment
from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.checkpoints.state import Progress
from trainer.closure import Closure
from trainer.engines.dtensor import full_tensor
from trainer.engines.native import Engine
from trainer.objective.meter import Meter
from trainer.optim.average import Average
from trainer.optim.optimizers import needs_closure
from trainer.optim.schedule import Schedule
from trainer.ranks.failures import Diverged
from trainer.ranks.precision import Precision
from trainer.ranks.runtime import Runtime

HOPELESS_SKIPS = 100
"""fp16 steps skipped in a row after which the loss is taken for diverged."""


class TrainStep:
    """Accumulate, unscale, clip, check finite, step, then move the EMA.

    The gradient is that of the summed loss divided by the number of samples actually in the global
    batch, on every world size, with every accumulation split, in a short last batch too.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        precision: Precision,
        augment: Augment,
        ema: Average | None,
        meter: Meter,
        progress: Progress,
        clip_norm: float | None,
        runtime: Runtime,
    ) -> None:
        self.engine = engine
        self.optimizer = optimizer
        self.schedule = schedule
        self.precision = precision
        self.augment = augment
        self.ema = ema
        self.meter = meter
        self.progress = progress
        self.clip_norm = clip_norm
        self.runtime = runtime
        self.needs_closure = needs_closure(optimizer)
        self.learning_rate = 0.0
        """That of the last step."""
        self.parameters = engine.trained()
        self.norm: Tensor | None = None
        """Of the last step's gradient, before clipping, if it is known already."""

    def __call__(self, global_batch: GlobalBatch, batches: Iterator[Batch]) -> None:
        """Train on one global batch; `batches` yields this rank's micro-batches of it."""
        optimizer, progress, scaler = self.optimizer, self.progress, self.precision.scaler
        self.learning_rate = self.schedule.apply(optimizer, progress.step, progress.global_batches)
        if self.needs_closure:
            closure = Closure(self, global_batch, batches, self.engine.module, self.runtime)
            scaler.step(optimizer, closure)
            self.meter.merge(closure.meter)
            self.norm = closure.norm
        else:
            self.differentiate(global_batch, batches, self.meter)
            scaler.step(optimizer)  # checks finite itself: with fp16 it may skip
        before = scaler.get_scale() if scaler.is_enabled() else 0.0  # waits for the device
        scaler.update()
        stepped = not scaler.is_enabled() or scaler.get_scale() >= before
        self.finish([global_batch], [stepped])
        if stepped and self.ema is not None:
            self.ema.update(self.engine.module, progress.step, progress.global_batches)

    def differentiate(
        self, global_batch: GlobalBatch, batches: Iterator[Batch], meter: Meter
    ) -> None:
        """The gradient of one global batch, as the optimizer uses it, to `.grad`."""
        self.engine.clear()
        loss_weight = self.engine.gradient_scale / global_batch.size
        for micro in global_batch.micro_batches:
            inputs, targets = next(batches)
            with self.engine.micro_batch(global_batch, micro):
                loss, score = self.engine.differentiate(*self.augment(inputs, targets), loss_weight)
            meter.add(global_batch.number, loss, score, micro.size)
        self.complete_gradient()

    def complete_gradient(self) -> None:
        """What is left to do after the last micro-batch: reduce over ranks, unscale and clip."""
        self.engine.reduce()
        self.norm = None
        self.precision.scaler.unscale_(self.optimizer)
        if self.clip_norm is not None:
            self.norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the last step's gradient, before clipping; every rank asks for it."""
        norm = self.norm
        if norm is None:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        return full_tensor(norm)

    def finish(self, global_batches: Sequence[GlobalBatch], taken: Sequence[bool]) -> None:
        """Count steps; of those that fp16 skipped neither step, rate nor average takes note.

        Raises:
            Diverged: If it has skipped too many in a row.
        """
        progress = self.progress
        for global_batch, stepped in zip(global_batches, taken, strict=True):
            progress.global_batches += 1
            if stepped:
                progress.step += 1
                progress.skipped_in_a_row = 0
                continue
            self.meter.forget(global_batch.number)
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1
            if progress.skipped_in_a_row >= HOPELESS_SKIPS:
                raise Diverged(
                    f"{HOPELESS_SKIPS} fp16 steps in a row had gradients that are not finite, "
                    f"after step {progress.step}: lower optimizer.lr, or use bf16"
                )
