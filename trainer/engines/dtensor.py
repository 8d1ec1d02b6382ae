"""Gathering DTensors for a checkpoint and scattering them again, so that no file depends on ranks.

A DTensor is a tensor of which every rank holds a part. Other tensors pass through, so that these
functions suit every module and optimizer.

`torch.distributed.checkpoint.state_dict` would save about ten lines, but it names the parameters
that torch.optim and our checkpoints number, fails on keys that are no attributes of the module, and
puts DTensors into the mapping that it loads. Asked for the state of an optimizer that has none yet
it even takes a step: AdamW counts one more from then on, and Rprop fails.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.networks.module_state import resize_buffers


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor on every rank, a collective; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """Gather the state dict of a module on rank 0; every rank calls it.

    DTensors are gathered one by one and moved to host memory, so that the device holds one of them
    at a time.

    Returns:
        The state dict with its own keys; on other ranks only what is not sharded.
    """
    return _gather(module.state_dict())


def load_full_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict of full tensors, which every rank has; no communication.

    Args:
        module: Sharded or not; a rank keeps its part of a tensor that is sharded.
        state: As `full_state` returned it on rank 0.

    Raises:
        RuntimeError: If keys or shapes of weights are not the module's.
    """
    resize_buffers(module, state)
    own = module.state_dict()
    module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather the state dict of an optimizer on rank 0, as `full_state` does that of a module.

    Returns:
        The state dict in torch.optim's own format, in which parameters have numbers.
    """
    state = optimizer.state_dict()
    return state | {"state": {index: _gather(own) for index, own in state["state"].items()}}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict of full tensors, which every rank has; no communication.

    Args:
        optimizer: Over sharded parameters or others; state of a parameter's shape is sharded like
            the parameter.
        state: As `full_optimizer_state` returned it on rank 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {name: _part(value, parameters[int(index)]) for name, value in own.items()}
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": parts})


def _gather(state: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with full tensors in host memory on rank 0, elsewhere without DTensors."""
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
    """This rank's part of a full tensor as a DTensor like another one, if that one is sharded."""
    if not hasattr(like, "full_tensor") or not isinstance(value, Tensor):
        return value
    if value.shape != like.shape:
        return value  # a step count; or refused when it is loaded
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
    return part.detach().clone()  # a copy: a view would keep the full tensor alive
