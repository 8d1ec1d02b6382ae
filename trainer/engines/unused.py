"""Parameters that get no gradient in some steps: expected after a trial, or seen when it is too
late."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema_execution import ParallelConfig
from data.samples import Example
from trainer.backward.autograd import LossModule, arguments_of
from trainer.networks.module_state import plain_attributes, untouched
from trainer.ranks.collectives import max_
from trainer.ranks.failures import RunFailed
from trainer.ranks.runtime import Runtime

log = logging.getLogger("convoy")


def decide_unused(
    parallel: ParallelConfig,
    loss: LossModule,
    *,
    runtime: Runtime,
    example: Example,
    changes: bool,
) -> ParallelConfig:
    """The same with `find_unused_parameters` decided, on every rank alike.

    Args:
        parallel: How ranks share the gradient.
        loss: The model with its normalisation and loss, whole and not compiled.
        runtime: This rank.
        example: The first sample.
        changes: Whether what is trained changes with the epoch.
    """
    chosen = parallel.find_unused_parameters
    if runtime.world_size == 1 or parallel.strategy != "ddp":
        chosen = False  # nobody to agree with; FSDP reduces what there is
    elif changes:
        chosen = True
    elif chosen == "auto":
        reason = reason_to_ask(loss, example, runtime.device)
        found = torch.tensor(float(bool(reason)), device=runtime.device)
        chosen = float(max_(runtime, found)) > 0
        if reason:
            log.info(
                "ranks tell each other in every step which parameters have a gradient "
                f"(parallel.find_unused_parameters): {reason}"
            )
    return replace(parallel, find_unused_parameters=chosen)


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether a value of a tensor comes to the host, where a program can branch on it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reason_to_ask(loss: LossModule, example: Example, device: torch.device) -> str:
    """Why passes may not all use the same parameters; nothing if a trial shows that they do.

    A pass over a sample or one where its floats are zeros leaves a parameter without a gradient, or
    does what a branch takes: reads a tensor on the host, draws from Python's or NumPy's generator,
    counts in Python; or refuses zeros. Leaves no trace but in the random generators.
    """
    named = {n: p for n, p in loss.module.named_parameters() if p.requires_grad}
    batch = example.batch(2).to(device)
    zeros = batch.map(lambda held: torch.zeros_like(held) if held.is_floating_point() else held)
    missing: dict[str, None] = {}
    drawn, plain, reads = _drawn(), plain_attributes(loss.module), _Reads()
    with untouched(loss.module):
        for tried in (batch, zeros):
            loss.module.zero_grad(set_to_none=True)
            try:
                with reads:
                    value = loss(*arguments_of(tried))[0]
                value.backward()
            except Exception:  # zeros are no boxes, for a detector, and models raise what they like
                if tried is batch:
                    raise
                reads.found = True  # who refuses values has looked at them
                continue
            missing |= dict.fromkeys(n for n, p in named.items() if p.grad is None)
        loss.module.zero_grad(set_to_none=True)
        counts = plain != plain_attributes(loss.module)
    if missing:
        return f"{len(missing)} had none in a trial ({', '.join([*missing][:3])})"
    acts = {
        "reads values of tensors on the host": reads.found,
        "draws from Python's or NumPy's random numbers": drawn != _drawn(),
        "changes attributes of the model": counts,
    }
    found = [what for what, does in acts.items() if does]
    return f"forward {' and '.join(found)}, so it may branch" if found else ""


def _drawn() -> tuple[Any, ...]:
    """Where Python's and NumPy's generators are."""
    _, keys, position, *rest = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), position, *rest


def check_used(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Stop where ranks have not agreed on a parameter: its bucket was not reduced.

    Args:
        named: Parameters by their names in a LossModule, compiled or not.

    Raises:
        RunFailed: With the name of one that was expected to have a gradient and has none.
    """
    for name, parameter in named:
        if parameter.requires_grad and parameter.grad is None:
            refuse_unused(name.partition("module.")[2])


def refuse_unused(name: str) -> NoReturn:
    """Say that a parameter has no gradient, and what to do."""
    raise RunFailed(
        f"parameter {name} got no gradient in this step, and had one in a trial before the first "
        "one. Use --parallel.find_unused_parameters true for a model that does not use all of its "
        "parameters in every step"
    )
