"""What a module is besides its weights: modes, memory layout, buffers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError
from trainer.ranks.collectives import broadcast_
from trainer.ranks.failures import RunFailed
from trainer.ranks.runtime import Runtime


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and afterwards every part of it in the mode it was in.

    A user may keep some parts in eval mode while others train.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


TRAVEL = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool),
)
"""What gloo and NCCL broadcast."""
PLAIN = (bool, int, float, complex, str, type(None))


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers back afterwards, be it that a pass puts others in their place."""
    buffers = [
        (part._buffers, key, buffer, buffer.clone())
        for part in module.modules()
        for key, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for place, key, buffer, value in buffers:
                buffer.copy_(value)
                place[key] = buffer


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Give a module its buffers, modes, extra state and plain attributes back afterwards.

    Passes within leave no trace in it, be it that a model counts them in Python.
    """
    extra = {
        n: copy.deepcopy(v) for n, v in module.state_dict().items() if not isinstance(v, Tensor)
    }
    plain = plain_attributes(module)
    try:
        with buffers_kept(module):
            yield
    finally:
        if extra:
            module.load_state_dict(extra, strict=False)
        for part, attributes in plain:
            vars(part).update(attributes)


def plain_attributes(module: nn.Module) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Each part with those of its attributes that are numbers, texts and the like."""
    return [
        (part, {k: v for k, v in vars(part).items() if isinstance(v, PLAIN)})
        for part in module.modules()
    ]


def share_buffers(module: nn.Module, runtime: Runtime, size: int) -> None:
    """After a step over fewer samples than ranks: give all ranks the buffers of the first one that
    had a sample, where those of rank 0 would be taken."""
    if size < runtime.world_size:
        first = -(-runtime.world_size // size) - 1
        broadcast_(runtime, list(module.buffers()), source=first)


def check_buffers(module: nn.Module, runtime: Runtime) -> None:
    """Refuse buffers of a type that ranks cannot give to each other.

    Raises:
        InputError: With the name of one.
    """
    for name, buffer in module.named_buffers() if runtime.world_size > 1 else ():
        if buffer.dtype not in TRAVEL:
            raise InputError(
                f"buffer {name} of the model",
                given=str(buffer.dtype),
                expected="a type that gloo and NCCL take, with several ranks: float16 to "
                "float64, bfloat16, int8, int32, int64, uint8, bool or complex64",
                remedy="Use one of them; `buffer.view(torch.uint8)` has the same bytes.",
            )


def modes_kept(module: nn.Module) -> int:
    """How many parts stay in eval mode while the whole is trained, as its author chose."""
    return sum(not part.training for part in module.modules())


class Buffers:
    """Some buffers of a module as they are now: a forward pass may put others in their place.

    Args:
        module: Whose buffers.
        floating: Those of floating-point numbers, or all others.
    """

    def __init__(self, module: nn.Module, *, floating: bool) -> None:
        self.slots = [
            (part._buffers, key, f"{path}.{key}".lstrip("."), buffer.shape)
            for path, part in module.named_modules()
            for key, buffer in part.named_buffers(recurse=False)
            if buffer.is_floating_point() is floating
        ]

    def __iter__(self) -> Iterator[Tensor]:
        for place, key, name, shape in self.slots:
            buffer = place.get(key)
            if buffer is None or buffer.shape != shape:
                found = "nothing" if buffer is None else tuple(buffer.shape)
                raise RunFailed(
                    f"buffer {name} of shape {tuple(shape)} became {found}: exact reduction "
                    "follows buffers that keep their shape. Use --parallel.reduction fast"
                )
            yield buffer


def resize_buffers(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take over those buffers of a state dict that have another shape: passes may have put them in
    the place of those that a module began with."""
    for name, buffer in list(module.named_buffers()):
        value = state.get(name)
        if isinstance(value, Tensor) and value.shape != buffer.shape:
            path, _, key = name.rpartition(".")
            module.get_submodule(path)._buffers[key] = value.detach().to(buffer.device, copy=True)


def non_persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that its state dict leaves out, by name; they may be counters all the same."""
    known = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in known}


def load_non_persistent_buffers(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put back what `non_persistent_buffers` gave; names that the module lacks are left out."""
    for name, buffer in non_persistent_buffers(module).items():
        if name not in saved:
            continue
        if saved[name].shape == buffer.shape:
            buffer.copy_(saved[name])
            continue
        path, _, key = name.rpartition(".")
        module.get_submodule(path)._buffers[key] = saved[name].to(buffer.device)


@contextmanager
def no_larger_than(weights: Mapping[str, Any], what: str) -> Iterator[None]:
    """Refuse a module that is being built as soon as it has far more parameters than weights.

    Far more: one that is replaced while the module is built counts twice.

    Args:
        weights: The state dict that it is built for.
        what: The module, for the message.

    Raises:
        InputError: Before memory is taken for it, if it is built on the device `meta`.
    """
    sizes = [weight.numel() for weight in weights.values() if isinstance(weight, Tensor)]
    left = [2 * len(sizes), 2 * sum(sizes)]

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if parameter is None:
            return
        left[0] -= 1
        left[1] -= parameter.numel()
        if min(left) < 0:
            raise InputError(
                f"{what} is larger than its weights",
                expected=f"the {len(sizes)} parameters of its checkpoint, {sum(sizes):,} numbers",
                remedy="Its config.yaml or its model.json is not as it was written.",
            )

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def contiguous(module: nn.Module) -> Iterator[None]:
    """Make all parameters contiguous, and afterwards give them the memory back that they had.

    Passes that are written out keep matrices transposed, which shows in the last bits of what a
    module computes: an evaluation must say what it would say of the saved weights.
    """
    moved = [(p, p.data) for p in module.parameters() if not p.is_contiguous()]
    for parameter, data in moved:
        parameter.data = data.contiguous()
    try:
        yield
    finally:
        for parameter, data in moved:
            parameter.data = data
