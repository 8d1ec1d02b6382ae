"""Activation checkpointing: blocks keep less, and run forward once more in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(blocks: Iterable[nn.Module]) -> None:
    """Let blocks keep their inputs only, and compute the rest again in the backward pass.

    Outputs, gradients and state-dict keys stay what they were: random numbers are drawn again from
    the same state, and batch-norm statistics do not see the second pass.
    """
    for block in blocks:
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        options = {"context_fn": functools.partial(_contexts, norms)} if norms else {}
        # Not a wrapper module: names stay, and hooks (FSDP's) run once, around it.
        block.forward = functools.partial(_checkpointed, block.forward, options)


def wrap_forward(
    block: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Put something around the forward pass of a module, the second one of a block included."""
    forward = block.forward
    if isinstance(forward, functools.partial) and forward.func is _checkpointed:
        inner, options = forward.args
        block.forward = functools.partial(_checkpointed, wrap(inner), options)
    else:
        block.forward = wrap(forward)


def _checkpointed(
    forward: Callable[..., Any], options: dict[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """The forward pass of a block, checkpointed if there will be a backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **options, **kwargs)


def _contexts(
    norms: list[_BatchNorm],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first pass of a block, and the second."""
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
