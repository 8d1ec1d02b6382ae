"""A module cut into parts among ranks: its mesh, its blocks, and the memory it is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import ParametrizationList

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from trainer.engines.dtensor import is_sharded, local, own_rows
from trainer.engines.scalars import give_dimension
from trainer.networks.blocks import blocks
from trainer.networks.deferred import Deferred
from trainer.ranks.runtime import Runtime, share_timeout

NORMS = (
    _BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
    ParametrizationList,
)
"""Whose weights stay float32: statistics, and what other weights are computed from."""


def build_mesh(runtime: Runtime, config: ParallelConfig) -> DeviceMesh:
    """The ranks that hold one copy together; with `parallel.shard_size` in rows, a row a copy."""
    size = config.shard_size or runtime.world_size
    shape = (size,) if size == runtime.world_size else (runtime.world_size // size, size)
    names = ("copies", "parts")[-len(shape) :]
    mesh = init_device_mesh(runtime.device.type, shape, mesh_dim_names=names)
    for group in mesh.get_all_groups():
        if group is not dist.group.WORLD:
            share_timeout(group)
    return mesh


def shard(
    module: nn.Module, dtype: torch.dtype | None, mesh: DeviceMesh, config: ParallelConfig
) -> None:
    """Cut the parameters of a module into parts, in place: its blocks one by one, then the rest.

    Args:
        module: With whole parameters, the same on every rank, or on meta. Its state dict keeps its
            keys.
        dtype: In which weights travel and compute; None: float32.
        mesh: The ranks.
        config: How gradients travel and where the parts lie.
    """
    give_dimension(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 cuts no others
    reduce_dtype = torch.bfloat16 if config.compression == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False
    )
    full = MixedPrecisionPolicy(reduce_dtype=reduce_dtype, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy()
    for part in _parts(module, dtype):
        # Freed after the forward pass, the outermost part too: what follows finds parts.
        wrapped = fully_shard(
            part,
            mesh=mesh,
            reshard_after_forward=True,
            mp_policy=full if isinstance(part, NORMS) else policy,
            offload_policy=offload,
        )
        wrapped.set_gradient_divide_factor(1.0)  # the sum over ranks, not their average
        wrapped.set_force_sum_reduction_for_comms(True)  # gloo has no other


def check_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Refuse weights that FSDP2 does not cut: without elements, or of several types in a part.

    Args:
        module: With whole parameters, or on meta.
        dtype: In which weights travel and compute; None: float32.

    Raises:
        InputError: With their names.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    refused = [f"{name} of shape {tuple(p.shape)}" for p, name in names.items() if not p.numel()]
    seen: set[nn.Parameter] = set()
    for part in _parts(module, dtype):
        own = [p for p in part.parameters() if p.requires_grad and p not in seen]
        seen.update(own)
        first = {p.dtype: f"{names[p]} of {p.dtype}" for p in reversed(own)}
        refused += first.values() if len(first) > 1 else []
    if refused:
        raise InputError(
            "parallel.strategy=fsdp",
            given=f"a model with {', '.join(refused[:3])}",
            expected="weights that have elements, and one type in all that are trained together "
            "(docs/parallel.md#fsdp)",
            remedy="Make them alike, or use --parallel.strategy ddp.",
        )


def keep_gathered(module: nn.Module) -> None:
    """Let the parts of a sharded module stay gathered between forward and backward pass.

    A forward pass without a backward pass, as in an evaluation, frees them at its end.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)

    def free(*_: Any) -> None:
        if not torch.is_grad_enabled():
            for part in parts:
                part.reshard()

    module.register_forward_hook(free)


@torch.no_grad()
def fill(
    module: nn.Module,
    average: nn.Module | None,
    deferred: Deferred,
    device: torch.device,
    config: ParallelConfig,
) -> None:
    """Give memory and initial values to a sharded module on meta and to the copy that follows it.

    Tensor by tensor: of each a rank keeps its rows.
    """
    place = torch.device("cpu") if config.cpu_offload else device
    for part in filter(None, (module, average)):
        part.to_empty(device=place)
        for inner in part.modules():
            held = inner._buffers
            held.update({key: _moved(buffer, device) for key, buffer in held.items()})
    own = dict(_named_tensors(module, remove_duplicate=False))
    left = dict(_named_tensors(module, remove_duplicate=True))
    for name, value in deferred.values():
        _set_rows(own[name], value)
        left.pop(name, None)
    assert not left, f"no values for {', '.join(left)}"
    if average is not None:
        theirs = dict(_named_tensors(module, remove_duplicate=False))
        for name, mine in _named_tensors(average, remove_duplicate=True):
            local(mine).copy_(local(theirs[name]))


def _named_tensors(module: nn.Module, *, remove_duplicate: bool) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=remove_duplicate)
    yield from module.named_buffers(remove_duplicate=remove_duplicate)


def _set_rows(target: Tensor, value: Tensor) -> None:
    if is_sharded(target):
        start, stop = own_rows(target)  # type: ignore[arg-type]
        value = value.reshape(target.shape)[start:stop]
    local(target).copy_(value)


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return tensor if tensor is None else tensor.to(device)


def _parts(module: nn.Module, dtype: torch.dtype | None) -> list[nn.Module]:
    """What is sharded by itself, each once and the inner ones first; what has no parameters has
    nothing to shard."""
    norms = [part for part in module.modules() if isinstance(part, NORMS)] if dtype else []
    parts = dict.fromkeys([*norms, *blocks(module), module])
    return [part for part in parts if next(part.parameters(recurse=True), None) is not None]
