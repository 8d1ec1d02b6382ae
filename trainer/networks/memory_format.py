"""Weights of convolutions with their channels last: what tensor cores compute with.

Values, state dicts and checkpoints are those of any other run; only the order in memory differs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema import RunConfig


def choose_channels_last(
    config: RunConfig, model: nn.Module, device: torch.device, *, autograd: bool
) -> bool:
    """Decide `compile.channels_last`.

    Args:
        config: Of the run.
        model: What is trained.
        device: Where.
        autograd: Whether its gradients come from autograd.

    Raises:
        InputError: If it is asked for and cannot be had.
    """
    asked = config.compile.channels_last
    if asked is False:
        return False
    obstacle = next(_obstacles(config, model, autograd=autograd), None)
    if asked is True and obstacle is not None:
        raise InputError(
            "compile.channels_last",
            given=True,
            expected=obstacle,
            remedy="Use --compile.channels_last auto, which does so where it is possible and pays.",
        )
    pays = device.type == "cuda" and config.precision.dtype in ("bf16", "fp16")
    return obstacle is None and (asked is True or pays)


def _obstacles(config: RunConfig, model: nn.Module, *, autograd: bool) -> Iterator[str]:
    """What a run would have to be."""
    if not autograd or not any(isinstance(part, nn.Conv2d) for part in model.modules()):
        yield "a model with convolutions of two dimensions"
    if config.parallel.strategy == "fsdp":
        yield "parallel.strategy ddp"
    if config.parallel.reduction == "exact":
        yield "parallel.reduction fast"


def put_channels_last(model: nn.Module) -> None:
    """Lay out the weights of convolutions anew; they stay the parameters that they are."""
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            weight = part.weight
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def steps(tensor: Tensor) -> list[int]:
    """The strides of a tensor that mean something: a side of 1 may have any."""
    return [step for step, side in zip(tensor.stride(), tensor.shape, strict=True) if side > 1]


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the state of convolutions as their weights are: fused kernels read both in one go.

    State that was loaded from a file comes in the usual order.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if parameter.dim() == 4 else ():
            same = isinstance(value, Tensor) and value.shape == parameter.shape
            if same and steps(value) != steps(parameter):
                laid = torch.empty_like(parameter, dtype=value.dtype, device=value.device)
                state[name] = laid.copy_(value)
