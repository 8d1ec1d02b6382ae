"""Whole tensors of sharded ones and back: what a checkpoint holds does not depend on ranks.

A sharded tensor is a DTensor, of which every rank has a part. Tensors that are not sharded pass
through, so that these functions suit every engine.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def full_tensor(tensor: Tensor) -> Tensor:
    """All parts of a sharded tensor together; a collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module with whole tensors, on rank 0; elsewhere without sharded ones.

    Every rank calls it. Sharded tensors are gathered one by one and moved to host memory, so that
    the device holds one of them at a time.
    """
    return _gather(module.state_dict())


def load_full_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Take over whole tensors, which every rank has; each keeps its part. No communication."""
    own = module.state_dict()
    module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The same of an optimizer, its parameters numbered as torch.optim does."""
    state = optimizer.state_dict()
    return state | {"state": {index: _gather(own) for index, own in state["state"].items()}}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over whole state; tensors of a parameter's shape are sharded like it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {name: _part(value, parameters[int(index)]) for name, value in own.items()}
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def _gather(state: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in state.items():
        if not hasattr(value, "full_tensor"):
            found[name] = value
            continue
        gathered = value.full_tensor().cpu()
        if dist.get_rank() == 0:
            found[name] = gathered
    return found


def _part(value: Any, like: Any) -> Any:
    """This rank's part of a whole tensor, cut like another one that is sharded."""
    if not hasattr(like, "full_tensor") or not isinstance(value, Tensor):
        return value
    if value.shape != like.shape:
        return value  # a step count; or refused when it is loaded
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    return part.detach().clone()  # a copy: a view would keep the whole tensor alive
