"""Collectives: what ranks say to each other. With one rank each of them is the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import InputError
from trainer.ranks.runtime import Runtime

T = TypeVar("T")
COALESCED_BYTES = 1 << 28
"""Of tensors that travel together."""


def sum_(runtime: Runtime, tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place, and return it."""
    if runtime.world_size > 1:
        dist.all_reduce(tensor)
    return tensor


def max_(runtime: Runtime, tensor: Tensor) -> Tensor:
    """Take the maximum of a tensor over all ranks, in place, and return it."""
    if runtime.world_size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def broadcast_(runtime: Runtime, tensors: list[Tensor], source: int = 0) -> None:
    """Overwrite tensors with those of one rank, in place; many small ones travel together."""
    if runtime.world_size > 1 and tensors:
        broadcast = dist._broadcast_coalesced  # type: ignore[attr-defined]
        broadcast(dist.group.WORLD, tensors, COALESCED_BYTES, source)  # type: ignore[arg-type]


def broadcast_object(runtime: Runtime, value: T) -> T:
    """The value that rank 0 holds, on every rank."""
    if runtime.world_size == 1:
        return value
    values: list[Any] = [value if runtime.is_main else None]
    dist.broadcast_object_list(values, src=0)
    received: T = values[0]
    return received


def gather_objects(runtime: Runtime, value: T) -> list[T]:
    """The values of all ranks in order, on every rank."""
    if runtime.world_size == 1:
        return [value]
    values: list[Any] = [None] * runtime.world_size
    dist.all_gather_object(values, value)
    return values


def barrier(runtime: Runtime) -> None:
    """Wait until every rank is here: this thread, too, and not its GPU alone, as NCCL has it."""
    if runtime.world_size > 1:
        sum_(runtime, torch.zeros(1, device=runtime.device)).item()


def raise_on_all_ranks(runtime: Runtime, work: Callable[[], T]) -> T:
    """Do work on every rank; if any rank refuses its input, every rank raises that InputError.

    Without this a rank that fails alone would leave the others waiting for it. Any other error is
    the failing rank's alone.

    Args:
        runtime: This rank.
        work: What to do here; it may differ by rank.

    Returns:
        What `work` returned on this rank.

    Raises:
        InputError: The first one in the order of ranks, on every rank alike.
    """
    result: T
    message: str | None = None
    try:
        result = work()
    except InputError as error:
        message = str(error)
    refusals = [found for found in gather_objects(runtime, message) if found is not None]
    if refusals:
        refusal = InputError(refusals[0])
        refusal.shared = True
        raise refusal
    return result
