"""Steps taken in a row or recorded, by whatever records them, and all that they leave behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.loading.order import GlobalBatch
from tests.support.rig import Rig
from trainer.cuda_graphs.recorded_steps import Outcome, RecordedSteps
from trainer.engines.native import NativeEngine
from trainer.steps import Steps

T = TypeVar("T")
NOISY: dict[str, Any] = {"dropout": 0.4, "optimizer": "adam", "lr": 0.01, "hidden": 16}


class Again:
    """What a CUDA graph does, by calling again: the same addresses in, the same addresses out."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.recorded: list[int] = []
        self.replayed = 0
        self.forgotten = False

    def eagerly(self, call: Callable[[], T]) -> T:
        return call()

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        rig, generator = self.rig, torch.get_rng_state()
        moving = (rig.module.state_dict(), rig.ema.module.state_dict() if rig.ema else {})
        before = copy.deepcopy((*moving, rig.optimizer.state_dict(), rig.scaler.state_dict()))
        result: Any = call()
        self.recorded.append(len(result.losses))
        for mine, saved in zip(moving, before[:2], strict=True):
            for name, value in saved.items():
                mine[name].copy_(value)
        rig.optimizer.load_state_dict(before[2])
        if rig.scaler.is_enabled():
            rig.scaler.load_state_dict(before[3])
        torch.set_rng_state(generator)

        def replay() -> None:
            self.replayed += 1
            again = flat(call())
            with torch.inference_mode():  # as passes that are written out make their tensors in
                for mine, new in zip(flat(result), again, strict=True):
                    if mine is not new:
                        mine.copy_(new)

        return result, replay

    def forget(self) -> None:
        self.forgotten = True


def flat(outcome: Outcome) -> list[Tensor]:
    found = [outcome.losses, outcome.scores, outcome.taken, outcome.norm, *outcome.gradients]
    return [tensor for tensor in found if tensor is not None]


def rows(
    rig: Rig, *, most: int = 8, recorder: Any = None, staged: bool = True, **how: bool
) -> Steps:
    """The rig's own step, told to take several in a row, or recordings of it."""
    assert isinstance(rig.step.engine, NativeEngine)
    rig.step.engine.stages = staged and rig.plan.micro_batches_per_step == 1
    rig.step.max_steps, rig.step.loader = most, rig.loader
    if recorder is None:
        return rig.step
    return RecordedSteps(rig.step, loader=rig.loader, recorder=recorder, **how)


def drive(rig: Rig, steps: Steps, cuts: list[int]) -> None:
    """Train, a row of at most that many global batches after another."""
    batches: Iterator[Any] = iter(())  # nobody takes from it
    for count in cuts:
        global_batches: list[GlobalBatch] = []
        for number in range(rig.progress.global_batches, rig.progress.global_batches + count):
            global_batch = rig.plan.global_batch(number)
            if global_batches and (
                global_batch.size != global_batches[0].size or global_batches[-1].ends_epoch
            ):
                steps(global_batches, batches)
                global_batches = []
            global_batches.append(global_batch)
        steps(global_batches, batches)


def everything(rig: Rig) -> list[Any]:
    """All that a checkpoint would hold, and what the host knows."""
    return [
        dict(rig.module.state_dict()),
        dict(rig.ema.module.state_dict()) if rig.ema else {},
        rig.optimizer.state_dict()["state"],
        rig.scaler.state_dict(),
        {name: getattr(rig.progress, name) for name in ("step", "global_batches", "skipped_steps")},
        rig.step.learning_rate,
        float(rig.step.gradient_norm()),
        rig.meter.state_dict(),
        torch.get_rng_state(),
    ]
