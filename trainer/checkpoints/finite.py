"""Whether every number of a run's state is finite: what is not is neither saved nor chosen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.checkpoints.state import RunState
from trainer.engines.dtensor import local
from trainer.ranks.collectives import gather_objects, max_


class FiniteCheck:
    """Looks at weights, buffers, average and optimizer state, where the host waits anyway.

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
    some = [value for value in found if value.numel() and _has_infinities(value)]
    # Of the largest magnitude: NaN if one of them is, infinite if one of them is.
    return not some or bool(torch.nn.utils.get_total_norm(some, norm_type=torch.inf).isfinite())


def _tensors(run: RunState) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in run.engine.module.named_parameters():
        yield f"the weight {name}", parameter.detach()
        for key, value in run.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"the optimizer's {key} of {name}", value
    for name, buffer in run.engine.module.named_buffers():
        yield f"the buffer {name}", buffer
    if run.average is not None:
        for name, value in run.average.module.state_dict().items():
            if isinstance(value, Tensor):
                yield f"the average of {name}", value


def _is_finite(value: Tensor) -> bool:
    return are_finite([value])


def _has_infinities(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()
