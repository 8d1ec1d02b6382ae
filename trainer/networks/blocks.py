"""The blocks of a model: what FSDP fetches at once, and what activation checkpointing redoes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from trainer.networks.models import model_blocks

CONTAINERS = (nn.Sequential, nn.ModuleList)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts that a model runs one after the other, none within another.

    What it declares as its blocks (see `models.model_blocks`), or else the elements of its
    outermost `nn.Sequential` and `nn.ModuleList` containers, where they have weights.

    Raises:
        InputError: If what it declares are no parts of it.
    """
    found = model_blocks(model) or list(_elements(model))
    return [block for block in found if next(block.parameters(), None) is not None]


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    """A ModuleList itself has no forward pass to wrap: its elements have, or theirs."""
    for child in module.children():
        if isinstance(module, CONTAINERS) and not isinstance(child, (*CONTAINERS, nn.ModuleDict)):
            yield child
        else:
            yield from _elements(child)


def check_shared_weights(model: nn.Module, found: Sequence[nn.Module]) -> None:
    """Refuse a weight that two blocks use: each would get a copy of its own.

    Raises:
        InputError: With the names of such a weight.
    """
    owners: dict[nn.Parameter, tuple[str, object]] = {}
    groups = {
        f"{name}.{own}" if name else own: block
        for name, block in model.named_modules(remove_duplicate=False)
        if block in found
        for own, _ in block.named_parameters(remove_duplicate=False)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first, owner = owners.setdefault(parameter, (name, groups.get(name)))
        if owner is not groups.get(name):
            raise InputError(
                "parallel.strategy=fsdp",
                given=f"one weight under the names {first} and {name}",
                expected="each weight in one block only",
                remedy="Give the model a method `blocks()` that leaves those parts out (they are "
                "then fetched together), or use --parallel.strategy ddp.",
            )


def checkpoint_activations(model: nn.Module) -> None:
    """Let every block keep its inputs only, and compute the rest again in the backward pass.

    Outputs, gradients and state-dict keys stay what they were: random numbers are drawn again from
    the same state, and batch-norm statistics do not see the second pass.
    """
    for block in blocks(model):
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        options = {"context_fn": functools.partial(_contexts, norms)} if norms else {}
        # Not a wrapper module: names stay, and hooks (FSDP's) run once, around it.
        block.forward = functools.partial(_checkpointed, block.forward, options)


def _checkpointed(
    forward: Callable[..., Any], options: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_stay(norms)


@contextmanager
def _statistics_stay(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms normalise as in training, and their running statistics stay what they are."""
    before = [
        (norm, norm.momentum, norm.num_batches_tracked, norm.num_batches_tracked.clone())
        for norm in norms
        if norm.num_batches_tracked is not None
    ]
    for norm, *_ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, count in before:
            norm.momentum = momentum
            counter.copy_(count)


def prepare_blocks(model: nn.Module, config: ParallelConfig, world_size: int) -> None:
    """What changes the model in place, before it is compiled or wrapped for its ranks."""
    if config.sync_batch_norm and world_size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.activation_checkpointing:
        checkpoint_activations(model)


def check_blocks(
    model: nn.Module, config: ParallelConfig, device: torch.device, world_size: int
) -> None:
    """Refuse what this model or device cannot do of `parallel`.

    Raises:
        InputError: With what to do instead.
    """
    if config.activation_checkpointing and not blocks(model):
        raise InputError(
            "parallel.activation_checkpointing",
            given=True,
            expected="a model with blocks",
            remedy="Give it a method `blocks()` that returns its parts in a list.",
        )
    if config.sync_batch_norm and world_size > 1 and device.type == "cpu":
        raise InputError(
            "parallel.sync_batch_norm",
            given=True,
            expected="GPUs, because torch.nn.SyncBatchNorm has no kernels for a CPU",
            remedy="Use --parallel.sync_batch_norm false: statistics are then each rank's own.",
        )
    if config.strategy == "fsdp" and world_size > 1:
        check_shared_weights(model, blocks(model))
    if config.cpu_offload and not (
        config.strategy == "fsdp" and world_size > 1 and device.type == "cuda"
    ):
        raise InputError(
            "parallel.cpu_offload",
            given=True,
            expected="parallel.strategy=fsdp on two GPUs or more",
        )
