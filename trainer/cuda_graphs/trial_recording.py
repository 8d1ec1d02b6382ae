"""Whether a recording does what the step does: it is replayed, and compared with a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainer.networks.module_state import PLAIN, untouched
from trainer.ranks.collectives import max_
from trainer.ranks.precision import scale_tensors
from trainer.ranks.rng import capture_rng, restore_rng
from trainer.step import TrainStep

T = TypeVar("T")
NOISE = 8.0
"""How much further a replay may be from a step than the same step, taken again, is from it: some
kernels of a GPU add in no fixed order."""
REPEATS = 4
"""How often the step is taken again to see how far it is from itself: once may be luck."""


class Traces:
    """What a step leaves on the host: where its random generators are, and what a model counts."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.rng = capture_rng(step.runtime.device)
        self.plain = _plain(step.engine.module)
        self.buffers = dict(step.engine.module.named_buffers())

    def restore(self) -> None:
        restore_rng(self.rng, self.step.runtime.device)
        parts = dict(self.step.engine.module.named_modules())
        for (path, name), value in self.plain.items():
            parts[path].__dict__[name] = value

    def changed(self, later: Traces) -> str | None:
        """What has changed since that no replay would change."""
        for key, value in self.plain.items():
            if repr(later.plain.get(key, value)) != repr(value):  # not a number is not itself
                return f"a step changes {'.'.join(filter(None, key))} of the model in Python"
        for name, buffer in self.buffers.items():
            if later.buffers.get(name) is not buffer:
                return f"a step puts another tensor in the place of buffer {name}"
        # A CPU's own generator is the device's where that is one.
        on_host = (
            "python",
            "numpy",
            *(["torch"] if self.step.runtime.device.type != "cpu" else []),
        )
        if any(not _same(self.rng[name], later.rng[name]) for name in on_host):
            return "a step draws random numbers on the host"
        return None


class Position(Traces):
    """Everything that a step changes, copied to the host; tensors stay where graphs know them."""

    def __init__(self, step: TrainStep) -> None:
        super().__init__(step)
        self.tensors = _changed_by(step)
        self.values = [tensor.detach().to("cpu", copy=True) for tensor in self.tensors]

    def restore(self) -> None:
        super().restore()
        with torch.no_grad():
            for tensor, value in zip(self.tensors, self.values, strict=True):
                tensor.copy_(value)


def untraced(step: TrainStep, record: Callable[[], T]) -> tuple[T | None, str | None]:
    """Record a step, with what that did on the host undone: nothing has been executed.

    Returns:
        What `record` returned, or None if it failed; and what speaks against it, if anything.
    """
    before = Traces(step)
    found, reason = None, None
    with untouched(step.engine.module):
        try:
            found = record()
        except RuntimeError as error:
            reason = f"recording said: {str(error).splitlines()[0]}"
        reason = reason or before.changed(Traces(step))
    before.restore()
    return found, reason


def compare(
    step: TrainStep, replay: Callable[[], object], execute: Callable[[], T]
) -> tuple[T, str | None]:
    """Replay a recording, go back, and take the same step in its place; every rank calls it.

    Args:
        step: What both change.
        replay: Takes the recorded step.
        execute: Takes it as it comes.

    Returns:
        What `execute` returned, the last to be called; and what is wrong with the replay, if it
        has not the bits of the step, and is further from it than that step is from itself.
    """
    before = Position(step)
    replay()
    replayed = Position(step)
    before.restore()
    outcome = execute()
    executed = Position(step)
    same = _same(replayed.rng, executed.rng)
    reason = None if same else "its replay draws other random numbers than a step"
    distance = _distance(replayed.values, executed.values)
    device = step.runtime.device
    if not max_(step.runtime, torch.tensor(distance, device=device)).item():
        return outcome, reason
    noise = 0.0
    for _ in range(REPEATS):  # as often on every rank: a step may reduce
        before.restore()
        outcome = execute()
        noise = max(noise, _distance(Position(step).values, executed.values))
    if distance > NOISE * noise:
        reason = f"its replay is {distance:.1e} away from a step, of the largest number"
    return outcome, reason


def _changed_by(step: TrainStep) -> list[Tensor]:
    module, average = step.engine.module, step.average
    found: list[Tensor] = [*module.parameters(), *module.buffers()]
    if average is not None:
        found += [*average.module.parameters(), *average.module.buffers()]
    for state in step.optimizer.state.values():
        found += [value for value in state.values() if isinstance(value, Tensor)]
    return found + scale_tensors(step.precision.scaler)


def _plain(module: nn.Module) -> dict[tuple[str, str], Any]:
    return {
        (path, name): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, PLAIN)
    }


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return all(_same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list):
        return all(_same(mine, other) for mine, other in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of two tensors over the largest number in them; 0: the same bits."""
    largest = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if torch.equal(mine, other) or not mine.numel():
            continue
        mine, other = mine.double(), other.double()
        away = (mine - other).abs().nan_to_num(torch.inf).max()
        largest = max(largest, float(away / other.abs().max().clamp(min=1e-30)))
    return largest
