"""Parameters that get no gradient in some steps: found by trial, or seen when it is too late."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

import torch
from torch import nn

from configs.schema_execution import ParallelConfig
from data.samples import Example
from trainer.backward.autograd import LossModule, arguments_of
from trainer.networks.module_state import untouched
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
        unused = unused_in_trial(loss, example, runtime.device)
        found = torch.tensor(float(len(unused)), device=runtime.device)
        chosen = float(max_(runtime, found)) > 0
        if unused:
            log.info(
                f"{len(unused)} parameters had no gradient in a trial ({', '.join(unused[:3])}): "
                "ranks tell each other in every step which have one "
                "(parallel.find_unused_parameters)"
            )
    return replace(parallel, find_unused_parameters=chosen)


def unused_in_trial(loss: LossModule, example: Example, device: torch.device) -> list[str]:
    """Names of parameters without a gradient in a pass over a sample or in one where its
    floats are zeros.

    Leaves no trace but in the random generators.
    """
    named = {n: p for n, p in loss.module.named_parameters() if p.requires_grad}
    batch = example.batch(2).to(device)
    zeros = batch.map(lambda held: torch.zeros_like(held) if held.is_floating_point() else held)
    missing: dict[str, None] = {}
    with untouched(loss.module):
        for tried in (batch, zeros):
            loss.module.zero_grad(set_to_none=True)
            loss(*arguments_of(tried))[0].backward()
            missing |= dict.fromkeys(n for n, p in named.items() if p.grad is None)
        loss.module.zero_grad(set_to_none=True)
    return list(missing)


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
