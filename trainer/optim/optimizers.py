"""Optimizers by name. To add one, write a function and list it in OPTIMIZERS."""

from __future__ import annotations

import ctypes
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.imports import call_with
from configs.registry import any_case, resolve
from configs.schema_execution import ParallelConfig
from configs.schema_training import OptimizerConfig
from trainer.optim.fused import STATE
from trainer.optim.muon import MuonWithAdamW
from trainer.optim.parameter_groups import Group

Parameters = list[nn.Parameter] | list[Group]

FUSED_DEVICES = ("cpu", "cuda")
"""Where torch's fused kernels exist: one kernel for all parameters instead of dozens."""
PROTOCOL = (
    "a subclass of torch.optim.Optimizer (it gets the parameters, lr, weight_decay and "
    "optimizer.kwargs), or a function (parameters, config, fused) -> torch.optim.Optimizer"
)


def sgd(parameters: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    options = {"momentum": config.momentum, "nesterov": config.nesterov}
    return construct(torch.optim.SGD, parameters, config, fused, options)


def adam(parameters: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    options = {"betas": tuple(config.betas), "eps": config.eps}
    return construct(torch.optim.Adam, parameters, config, fused, options)


def adamw(parameters: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    options = {"betas": tuple(config.betas), "eps": config.eps}
    return construct(torch.optim.AdamW, parameters, config, fused, options)


def muon(parameters: Parameters, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """Muon for matrices, AdamW with the same learning rate for everything else."""
    options = {"betas": tuple(config.betas), "eps": config.eps, "fused": fused}
    return construct(MuonWithAdamW, parameters, config, fused, {"adamw": options})


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "muon": muon,
}
CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    name: found
    for name, found in sorted(vars(torch.optim).items())
    if isinstance(found, type)
    and issubclass(found, torch.optim.Optimizer)
    and found is not torch.optim.Optimizer
    and name.lower() not in OPTIMIZERS
}
"""The other classes of torch.optim, constructed as they are."""


def build_optimizer(
    config: OptimizerConfig,
    parameters: Iterable[nn.Parameter] | Iterable[Group],
    device: torch.device,
    *,
    scaled: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, fused where the device has the kernels.

    Args:
        config: Name and hyperparameters.
        parameters: All parameters of the model, of which frozen ones are left out, or groups.
        device: Where they live.
        scaled: Whether a GradScaler may skip steps. torch's fused SGD leaves the momentum buffer
            uninitialised when the very first step is skipped, so it is not used then.

    Raises:
        InputError: For an unknown name, or arguments that the optimizer does not take.
    """
    _call_without_dynamo()
    factory = _find(config.name)
    trainable: Any = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    fused = _is_fused(factory, device, scaled)
    if isinstance(factory, type):
        if not issubclass(factory, torch.optim.Optimizer):
            raise InputError("optimizer.name", given=config.name, expected=PROTOCOL)
        optimizer = construct(factory, trainable, config, fused, {})
    else:
        optimizer = _call(factory, trainable, config, fused)
    if scaled and needs_closure(optimizer):
        raise InputError(
            "precision.dtype",
            given="fp16",
            expected=f"fp32 or bf16 with optimizer.name={config.name}",
            remedy="It looks at the loss several times a step; a scaled one may be skipped.",
        )
    return optimizer


def _call_without_dynamo() -> None:
    """Let optimizers be made without torch._dynamo, whose import takes as long as that of torch.

    `torch._disable_dynamo` imports it at the first call of these methods, to hide them from what
    torch.compile traces; nothing traces them here. Where torch goes about it otherwise, it stays.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, "__dynamo_disable"):
            plain.__dynamo_disable = plain


def _find(name: str) -> Callable[..., Any]:
    table: dict[str, Callable[..., Any]] = {**OPTIMIZERS, **CLASSES}
    return resolve("optimizer.name", any_case(name, table), table)


def _is_fused(factory: Callable[..., Any], device: torch.device, scaled: bool) -> bool:
    return device.type in FUSED_DEVICES and (factory in (adam, adamw) or not scaled)


def construct(
    kind: Callable[..., torch.optim.Optimizer],
    parameters: Parameters,
    config: OptimizerConfig,
    fused: bool,
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """Call a class with what it takes of lr, weight_decay and `options`, and optimizer.kwargs.

    Raises:
        InputError: With the signature, if an argument is unknown or refused.
    """
    takes = inspect.signature(kind).parameters
    if config.weight_decay and "weight_decay" not in takes:
        raise InputError(
            "optimizer.weight_decay",
            given=config.weight_decay,
            expected=f"0 with optimizer.name={config.name}, which has none",
        )
    offered: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if fused and not {"differentiable", "foreach", "fused"} & set(config.kwargs):
        offered["fused"] = True  # None, not False, elsewhere: torch then prefers foreach on a GPU
        offered["capturable"] = _on_gpu(parameters)  # fused ones are: CUDA graphs may record them
    try:
        found: torch.optim.Optimizer = call_with(
            "optimizer.kwargs", kind, dict(config.kwargs), {**offered, **options}, parameters
        )
        return found
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # a value that it refuses
        raise InputError(
            "optimizer.kwargs",
            given=config.kwargs,
            expected=f"arguments of {config.name}{inspect.signature(kind)}",
            remedy=f"It says: {error}.",
        ) from None


def _call(
    factory: Callable[..., Any], parameters: Parameters, config: OptimizerConfig, fused: bool
) -> torch.optim.Optimizer:
    try:
        inspect.signature(factory).bind(parameters, config, fused)
    except TypeError:
        raise InputError("optimizer.name", given=config.name, expected=PROTOCOL) from None
    found = factory(parameters, config, fused)
    if not isinstance(found, torch.optim.Optimizer):
        raise InputError("optimizer.name", given=config.name, expected=PROTOCOL)
    return found


def _on_gpu(parameters: Parameters) -> bool:
    return any(
        parameter.is_cuda
        for item in parameters
        for parameter in (item["params"] if isinstance(item, dict) else [item])
    )


def one_kernel(config: OptimizerConfig) -> bool:
    """Whether one kernel can step all parameters in a flat buffer (see `flat.FlatKernel`)."""
    one_group = config.groups is None and config.layer_decay is None and not config.lr_factors
    alike = config.decay_norms_and_biases or not config.weight_decay
    named = config.name.lower() in ("sgd", "adam", "adamw")
    return named and one_group and alike and not config.kwargs


def has_fused_kernel(config: OptimizerConfig, device: torch.device, *, scaled: bool) -> bool:
    """Whether torch steps this optimizer by a fused kernel that can be called directly.

    Args:
        config: Name and hyperparameters.
        device: Where the parameters live.
        scaled: Whether a GradScaler may skip steps.
    """
    factory = _find(config.name)
    kind = {sgd: torch.optim.SGD, adam: torch.optim.Adam, adamw: torch.optim.AdamW}.get(
        factory, factory
    )
    chosen = {"differentiable", "foreach", "fused"} & set(config.kwargs)
    fused = config.kwargs.get("fused", False) if chosen else _is_fused(factory, device, scaled)
    return kind in STATE and bool(fused)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step asks for the loss several times, as that of LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def check_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, parallel: ParallelConfig
) -> None:
    """Refuse gradients that an optimizer has no use for.

    Raises:
        InputError: With what to do instead.
    """
    if needs_closure(optimizer) and parallel.compression == "powersgd":
        raise InputError(
            "parallel.compression",
            given="powersgd",
            expected=f"none, bf16 or fp16 with {type(optimizer).__name__}",
            remedy="Its error feedback would make every evaluation of the loss another function.",
        )
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    if isinstance(optimizer, torch.optim.SparseAdam) and not sparse:
        raise InputError(
            "optimizer.name",
            given="SparseAdam",
            expected="a model with sparse gradients, such as torch.nn.Embedding(sparse=True)",
            remedy="Use adam.",
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """Every group's learning rate: the schedule's times the group's own factor.

    On a GPU the host's numbers are rounded to float32, as they are when the rate comes from the
    device: how steps are taken must not show.
    """
    on_gpu = optimizer.param_groups[0]["params"][0].is_cuda
    for group in optimizer.param_groups:
        if on_gpu and isinstance(rate, float):
            group["lr"] = product_in_single(rate, group.get("lr_scale", 1.0))
        else:
            group["lr"] = rate * group["lr_scale"] if "lr_scale" in group else rate


def product_in_single(rate: float, scale: float) -> float:
    """As a float32 tensor is multiplied by a number: each of the three is rounded."""
    product = ctypes.c_float(rate).value * ctypes.c_float(scale).value
    return ctypes.c_float(product).value
