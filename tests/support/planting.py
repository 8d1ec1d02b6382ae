"""A NaN put somewhere into a run that goes on, after a step of its real loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import trainer.session
from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.loop import Run

PLACES = ("gradient", "weight", "buffer", "optimizer", "average")


class Planter:
    """Takes the steps of a run one by one, and plants after one of them, or in its gradient.

    A gradient is spoilt on every rank, as one that all of them share would be; anything else on the
    last rank alone.
    """

    max_steps = 1

    def __init__(self, run: Run, place: str, at: int) -> None:
        self.run, self.steps, self.place, self.at = run, run.steps, place, at
        self.reduce = run.state.engine.reduce
        run.state.engine.reduce = self._reduce  # type: ignore[method-assign]

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        self.steps(global_batches, batches)
        runtime = self.run.runtime
        if self.run.state.progress.step == self.at and runtime.rank == runtime.world_size - 1:
            self._plant()

    def close(self) -> None:
        self.steps.close()

    def _reduce(self) -> None:
        self.reduce()
        if self.place == "gradient" and self.run.state.progress.step == self.at - 1:
            self.place = ""  # fp16 skips that step, and comes again
            spoil(self.run.state.engine.trained()[0].grad)

    def _plant(self) -> None:
        state = self.run.state
        parameter = next(p for p in state.engine.module.parameters() if p.requires_grad)
        if self.place == "weight":
            spoil(parameter)
        elif self.place == "buffer":
            spoil(next(b for b in state.engine.module.buffers() if b.is_floating_point()))
        elif self.place == "average":
            assert state.average is not None
            spoil(next(state.average.module.parameters()))
        elif self.place == "optimizer":
            held = state.optimizer.state[parameter].values()
            spoil(next(v for v in held if isinstance(v, Tensor) and v.dim()))


@torch.no_grad()
def spoil(tensor: Tensor | None) -> None:
    """The first number that this rank holds of it."""
    assert tensor is not None
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    local[(0,) * local.dim()] = torch.nan


@contextmanager
def planted(place: str, at: int) -> Iterator[None]:
    """Runs that begin within have a NaN there, in or after so many steps."""
    build = trainer.session.build

    def build_with_planter(*arguments: object) -> Run:
        run: Run = build(*arguments)  # type: ignore[arg-type]
        run.steps = Planter(run, place, at)
        return run

    trainer.session.build = build_with_planter  # type: ignore[assignment]
    try:
        yield
    finally:
        trainer.session.build = build
