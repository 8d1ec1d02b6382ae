"""Gathering DTensors for a checkpoint and scattering them again, so that no file depends on ranks.

A DTensor is a tensor of which every rank holds a part. Other tensors pass through, so that these
functions suit every module and optimizer.

`torch.distributed.checkpoint.state_dict` would save about ten lines, but it names the parameters
that torch.optim and our checkpoints number, fails on keys that are no attributes of the module, and
puts DTensors into the mapping that it loads. Asked for the state of an optimizer that has none yet
it even takes a step: AdamW counts one more from then on, and Rprop fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.engines.scalars import names_of_scalars
from trainer.networks.module_state import resize_buffers
from trainer.optim.slots import SCALARS

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@runtime_checkable
class Stored(Protocol):
    """A tensor that lies on disk, whole or in parts, and is read by rows of its first dimension."""

    shape: torch.Size
    dtype: torch.dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), in host memory; of a scalar [0, 1) is all."""
        ...


def whole(value: Any) -> Any:
    """What was stored, read; anything else as it is."""
    if not isinstance(value, Stored):
        return value
    rows = value.shape[0] if value.shape else 1
    return value.rows(0, rows).reshape(value.shape)


def is_sharded(value: Any) -> bool:
    """Whether it is a DTensor, without importing what makes them."""
    return hasattr(value, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor, or the tensor."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def own_rows(tensor: DTensor) -> tuple[int, int]:
    """The rows [start, stop) of a tensor cut along its first dimension that lie on this rank.

    FSDP cuts into equal parts of which the last may be smaller or empty; copies between groups of
    ranks (HSDP) are another dimension of the mesh.
    """
    count, start, stop = tensor.shape[0], 0, tensor.shape[0]
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    for dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            size = -(-count // tensor.device_mesh.size(dim))
            start = min(size * coordinate[dim], count)
            stop = min(start + size, count)
    return start, stop


def replica(tensor: DTensor) -> tuple[int, int]:
    """Which copy of its part a rank holds, and how many copies there are."""
    number, count = 0, 1
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    for dim, placement in enumerate(tensor.placements):
        if not placement.is_shard():
            number = number * tensor.device_mesh.size(dim) + coordinate[dim]
            count *= tensor.device_mesh.size(dim)
    return number, count


def cut_by_rows(tensor: DTensor) -> DTensor:
    """A DTensor as it is, or whole on every rank if it is not cut along its first dimension, as
    state that an optimizer computed of parts may be; a collective."""
    if all(p.is_replicate() or p.is_shard(0) for p in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)


def like(local: Tensor, tensor: DTensor) -> DTensor:
    """A DTensor of this rank's part, cut as another one of the same shape."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


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
    found, scalars = _gather(module.state_dict()), names_of_scalars(module)
    return {name: v.reshape(()) if name in scalars else v for name, v in found.items()}


def load_full_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Load a state dict of full tensors, which every rank has; no communication.

    Args:
        module: Sharded or not; a rank keeps its part of a tensor that is sharded.
        state: As `full_state` returned it on rank 0; of what is stored, a rank reads its part.

    Raises:
        RuntimeError: If keys or shapes of weights are not the module's.
    """
    own, scalars = module.state_dict(), names_of_scalars(module)
    state = {name: v if is_sharded(own.get(name)) else whole(v) for name, v in state.items()}
    resize_buffers(module, state)
    state = {name: whole(v).reshape(1) if name in scalars else v for name, v in state.items()}
    module.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Gather the state dict of an optimizer on rank 0, as `full_state` does that of a module.

    Returns:
        The state dict in torch.optim's own format, in which parameters have numbers.
    """
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {}
    for index, own in state["state"].items():
        cut = {name for name, value in own.items() if is_sharded(value)}
        scalar = hasattr(parameters[index], "was_scalar")
        gathered = _gather(own)
        found[index] = {
            name: value.reshape(()) if scalar and name in cut else value
            for name, value in gathered.items()
        }
    return state | {"state": found}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict of full tensors, which every rank has; no communication.

    Args:
        optimizer: Over sharded parameters or others; state of a parameter's shape is sharded like
            the parameter.
        state: As `full_optimizer_state` returned it on rank 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    held = [(parameters[int(i)], own) for i, own in state["state"].items()]
    numbers = {k for p, own in held for k, v in own.items() if p.numel() > 1 and _is_number(v)}
    parts = {
        index: {
            name: value if name in numbers else _state_part(name, value, parameter)
            for name, value in own.items()
        }
        for (index, own), (parameter, _) in zip(state["state"].items(), held, strict=True)
    }
    optimizer.load_state_dict(state | {"state": parts})


def _gather(state: dict[str, Any]) -> dict[str, Any]:
    """The same mapping with full tensors in host memory on rank 0, elsewhere without DTensors."""
    found = {}
    for name, value in state.items():
        if not is_sharded(value):
            found[name] = value
            continue
        gathered = value.full_tensor().cpu()
        if dist.get_rank() == 0:
            found[name] = gathered
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.dim()


def _state_part(name: str, value: Any, parameter: Tensor) -> Any:
    """This rank's part of what an optimizer keeps of a parameter: perhaps a number for each row."""
    value = _dimensioned(name, value, parameter)
    shape = torch.Size(getattr(value, "shape", ()))
    if not is_sharded(parameter) or not shape or shape == parameter.shape:
        return _part(value, parameter)
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
    start, stop = own_rows(parameter)  # type: ignore[arg-type]
    if shape[0] != parameter.shape[0]:
        placements, start, stop = [Replicate()] * mesh.ndim, 0, shape[0]
    local = value.rows(start, stop) if isinstance(value, Stored) else value[start:stop].clone()
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local.to(parameter.device), mesh, placements, run_check=False, shape=shape, stride=stride
    )


def _dimensioned(name: str, value: Any, parameter: Tensor) -> Any:
    """State of a parameter that is a scalar, or (1,) among ranks, in the shape that it has here."""
    shapes = {tuple(getattr(value, "shape", parameter.shape)), tuple(parameter.shape)}
    other = shapes == {(), (1,)} and name not in SCALARS
    return whole(value).reshape(parameter.shape) if other else value


def _part(value: Any, model: Any) -> Any:
    """This rank's part of a full tensor, cut as `model` is, if that one is sharded."""
    stored = isinstance(value, Stored)
    if not is_sharded(model) or not (stored or isinstance(value, Tensor)):
        return whole(value)
    if value.shape != model.shape:
        # A step count; or refused when it is loaded, for which nothing has to be read.
        return torch.empty(value.shape, device="meta") if stored else value
    start, stop = own_rows(model)
    local = value.rows(start, stop) if stored else value[start:stop].clone()
    return like(local.to(model.device), model)
