"""Whether every number of a run's state is finite: what is not is neither saved nor chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoints.state import RunState
from trainer.engines.dtensor import local
from trainer.ranks.collectives import gather_objects, max_


class FiniteCheck:
    """Looks at weights, buffers, extra state, average and all that an optimizer keeps, where the
    host waits anyway.

    What is not finite from the beginning, such as a mask of -inf in a buffer, is meant so.

    Args:
        run: The state as it was built.
    """

    def __init__(self, run: RunState) -> None:
        self.run = run
        self.meant_so = {name for name, value in _tensors(run) if not _is_finite(value)}

    def culprit(self) -> str | None:
        """What is not finite on some rank, by its name, such as `the weight body.0.bias`.

        Every rank calls it. One pass over the state and one number back from the device.
        """
        named = {n: value for n, value in _tensors(self.run) if n not in self.meant_so}
        runtime = self.run.runtime
        bad = torch.tensor(0.0 if are_finite(list(named.values())) else 1.0, device=runtime.device)
        if not float(max_(runtime, bad)):
            return None
        mine = next((name for name, value in named.items() if not _is_finite(value)), None)
        return next(name for name in gather_objects(runtime, mine) if name is not None)


def are_finite(tensors: list[Tensor]) -> bool:
    """Whether all of them are; integers are."""
    found = [local(value) for value in tensors]
    some = [_with_norm(value) for value in found if value.numel() and _has_infinities(value)]
    # Of the largest magnitude: NaN if one of them is, infinite if one of them is.
    return not some or bool(torch.nn.utils.get_total_norm(some, norm_type=torch.inf).isfinite())


def _tensors(run: RunState) -> Iterator[tuple[str, Tensor]]:
    module, optimizer = run.engine.module, run.optimizer
    names: dict[Any, str] = {p: name for name, p in module.named_parameters()}
    for parameter, name in names.items():
        yield f"the weight {name}", parameter.detach()
    for name, buffer in module.named_buffers():
        yield f"the buffer {name}", buffer
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            yield from _within(f"the extra state {name}", value)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            yield from _within(f"the optimizer's {key} of {names.get(parameter)}", value)
    for number, group in enumerate(optimizer.param_groups):
        for key in group.keys() - {"params"}:
            yield from _within(f"the optimizer's {key} of group {number}", group[key])
    if run.average is not None:
        for name, value in run.average.module.state_dict().items():
            yield from _within(f"the average of {name}", value)


def _within(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in lists and mappings, as LBFGS keeps them, and numbers that are not finite."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, float) and not math.isfinite(value):
        yield name, torch.tensor(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _within(f"{name}, {key}", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _within(f"{name}, {index}", item)


def _is_finite(value: Tensor) -> bool:
    return are_finite([value])


def _with_norm(value: Tensor) -> Tensor:
    """Types of a byte have no operations."""
    return value.float() if value.itemsize == 1 else value


def _has_infinities(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
