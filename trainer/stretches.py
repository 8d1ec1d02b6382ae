"""Several optimizer steps in a row without the host in between: `step.py` at its fastest.

A step of a small network takes the device less time than the host needs to look at it. What the
host decides for every step (learning rate, weight of the average) is decided for a whole stretch
beforehand, and what the device decides (whether fp16 skips a step) is read after it. On a GPU the
steps of a stretch are one CUDA graph. How a run is cut into stretches changes none of its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data.loading.loader import ResidentLoader
from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.objective.meter import Meter
from trainer.optim.flat import untracked
from trainer.optim.torch_schedule import set_rate
from trainer.ranks.precision import loss_scale
from trainer.step import TrainStep

StepHyperparameters = tuple[list[float], list[float]] | Tensor
"""Learning rate and weight of the average for each step of a stretch, on the host or the device."""


class Stretches:
    """Takes the steps of a run, several at a time as long as nothing is due in between.

    Args:
        step: What a step is.
        most: Steps of a stretch; 1: `step` takes each by itself.
        loader: Where the samples of a stretch come from at once; None: from the stream of batches.
        ahead: Passes that make all batches of a stretch ready together.
    """

    def __init__(
        self,
        step: TrainStep,
        *,
        most: int = 1,
        loader: ResidentLoader | None = None,
        ahead: ExplicitPasses | None = None,
    ) -> None:
        assert loader is not None or ahead is None
        self.step = step
        self.most = most
        self.loader = loader
        self.ahead = ahead

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        """Train on global batches of one size and one epoch.

        Args:
            global batches: At most `most` of them.
            batches: This rank's micro-batches, used unless there is a loader.
        """
        if self.most == 1:
            for global_batch in global_batches:
                self.step(global_batch, batches)
            return
        hyperparameters = self._knobs(len(global_batches))
        block = self.loader.block(global_batches) if self.loader is not None else None
        ready = self._on_device(hyperparameters) if self._skips else hyperparameters
        if block is not None and self.ahead is not None:
            with untracked(self.step.runtime.device):
                losses, scores, taken = self._run_ahead(self.ahead, global_batches, block, ready)
            self._remember(global_batches, losses, scores)
        else:
            batches = batches if block is None else slices(global_batches, block)
            taken = self._run(global_batches, self._following(batches, self.step.meter), ready)
        self._finish(global_batches, torch.stack(taken) if taken else None, hyperparameters[0])

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

    def _on_device(self, hyperparameters: StepHyperparameters) -> Tensor:
        return torch.tensor(hyperparameters).to(self.step.runtime.device, non_blocking=True)

    def _following(self, batches: Iterator[Batch], meter: Meter) -> Callable[[GlobalBatch], None]:
        return lambda global_batch: self.step.differentiate(global_batch, batches, meter)

    def _run_ahead(
        self,
        passes: ExplicitPasses,
        global_batches: Sequence[GlobalBatch],
        block: Batch,
        hyperparameters: StepHyperparameters,
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The steps, on batches that are made ready together: summed losses, scores, and `_run`."""
        step = self.step

        def differentiate(_: GlobalBatch) -> None:
            passes.clear()
            passes.advance()
            step.complete_gradient()

        loss_weight = step.engine.gradient_scale / global_batches[0].size
        prepared = passes.prepare(*block, loss_weight, len(global_batches))
        taken = self._run(global_batches, differentiate, hyperparameters)
        return prepared.losses, prepared.hits, taken

    def _run(
        self,
        global_batches: Sequence[GlobalBatch],
        differentiate: Callable[[GlobalBatch], None],
        hyperparameters: StepHyperparameters,
    ) -> list[Tensor]:
        """The steps; nothing in here looks at the device.

        Args:
            global batches: Their global batches.
            differentiate: Leaves the gradient of each, as the optimizer uses it.
            knobs: Of each step.

        Returns:
            With fp16, whether each step was taken.
        """
        step, (rates, weights), taken = self.step, hyperparameters, list[Tensor]()
        scaler, average = step.precision.scaler, step.ema
        if self._skips:  # a step that is skipped leaves rate and weight to the next one
            count = torch.zeros(1, dtype=torch.int64, device=step.runtime.device)
        set_to: float | Tensor | None = None
        for number, global_batch in enumerate(global_batches):
            rate, weight = rates[number], weights[number]
            if self._skips:
                rate, weight = _pick(rates, count), _pick(weights, count)
            if rate is not set_to:
                set_rate(step.optimizer, rate)
                set_to = rate
            differentiate(global_batch)
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
        self, global_batches: Sequence[GlobalBatch], taken: Tensor | None, rates: Sequence[float]
    ) -> None:
        """Take note on the host of what happened. With fp16 this waits for the device."""
        step, progress = self.step, self.step.progress
        kept = [True] * len(global_batches) if taken is None else taken.tolist()
        step.finish(global_batches, kept)
        step.learning_rate = rates[sum(kept[:-1])]
        set_rate(step.optimizer, step.learning_rate)
        if step.ema is not None and not step.ema.follows_every_step:
            step.ema.update(step.engine.module, progress.step, progress.global_batches)

    def _remember(
        self, global_batches: Sequence[GlobalBatch], losses: Tensor, scores: Tensor
    ) -> None:
        """Metrics of all micro-batches of a stretch."""
        self.step.meter.extend(
            [
                global_batch.number
                for global_batch in global_batches
                for _ in global_batch.micro_batches
            ],
            losses,
            scores,
            [micro.size for global_batch in global_batches for micro in global_batch.micro_batches],
        )


def slices(global_batches: Sequence[GlobalBatch], block: Batch) -> Iterator[Batch]:
    """The micro-batches of a stretch."""
    start = 0
    for global_batch in global_batches:
        for micro in global_batch.micro_batches:
            yield block[0][start : start + micro.size], block[1][start : start + micro.size]
            start += micro.size


def _pick(values: list[float] | Tensor, index: Tensor) -> Tensor:
    """An element of a tensor whose index `(1,)` is on the device. (`[index]` would fetch it.)"""
    assert isinstance(values, Tensor)
    return values.index_select(0, index).view(())
