"""Optimizers by name. To add one, write a function and list it in OPTIMIZERS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from configs.schema_training import OptimizerConfig
from trainer.flat import KERNELS, FlatParameters, flatten_optimizer
from trainer.registry import resolve

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch's fused kernels exist: one kernel for all parameters instead of dozens."""


def sgd(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, fused: bool
) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def _adam_arguments(config: OptimizerConfig, fused: bool) -> dict[str, Any]:
    return {
        "lr": config.lr,
        "betas": tuple(config.betas),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "fused": fused,
    }


def adam(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, fused: bool
) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, **_adam_arguments(config, fused))


def adamw(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig, fused: bool
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **_adam_arguments(config, fused))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter],
    device: torch.device,
    *,
    scaled: bool = False,
    flat: FlatParameters | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, fused where the device has the kernels.

    Args:
        config: Name and hyperparameters.
        parameters: All parameters of the model; frozen ones are left out.
        device: Where they live.
        scaled: Whether a GradScaler may skip steps. torch's fused SGD leaves the momentum buffer
            uninitialised when the very first step is skipped, so it is not used then.
        flat: The parameters if they lie in a flat buffer: one kernel then steps them all.
    """
    factory = resolve("optimizer.name", config.name, OPTIMIZERS)
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    fused = device.type in FUSED_DEVICES and not (scaled and factory is sgd)
    optimizer: torch.optim.Optimizer = factory(trainable, config, fused)
    if flat is not None and type(optimizer) in KERNELS:
        flatten_optimizer(optimizer, flat)
    return optimizer
