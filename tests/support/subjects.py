"""Objects with state that are stopped, stored and continued, and a whole run as one of them."""

from __future__ import annotations

import io
from typing import Any, Protocol

import torch

from tests.support.rig import Rig, make
from trainer.checkpoints.state import RunState, capture, restore
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime

ALONE = Runtime(launcher="python")


def through_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Subject(Protocol):
    """An object with state, freshly built."""

    def advance(self, step: int) -> None:
        """Do what training does with it in step `step`."""
        ...

    def save(self) -> Any: ...

    def load(self, state: Any) -> None: ...

    def bits(self) -> Any:
        """Everything that must be equal in the end."""
        ...


class RunSubject:
    """The whole run, through trainer.checkpoints.state: this is what a checkpoint holds."""

    def __init__(self, **keys: Any) -> None:
        self.exact = keys.get("reduction") == "exact"
        # 40 samples: global batches of 16, 16 and 8.
        self.rig = make(
            num_samples=40, dropout=0.3, batch_norm=True, decay=0.9, warmup=2, micro=4, **keys
        )
        self.state = stateful(self.rig)
        seed_stream(self.state.seed, "rank", 0)

    def advance(self, step: int) -> None:
        self.rig.drive()
        self.rig.progress.metrics, self.rig.progress.best_step = {"accuracy": step / 10}, step

    def save(self) -> Any:
        weights, trainer = capture(self.state)
        return {"weights": weights, "trainer": trainer}

    def load(self, state: Any) -> None:
        assert restore(self.state, **state, exact=self.exact) == []

    def bits(self) -> Any:
        return self.save()


def stateful(rig: Rig, runtime: Runtime = ALONE) -> RunState:
    return RunState(
        engine=rig.step.engine,
        optimizer=rig.optimizer,
        schedule=rig.schedule,
        precision=rig.step.precision,
        average=rig.ema,
        meter=rig.meter,
        progress=rig.progress,
        seed=3,
        runtime=runtime,
    )
