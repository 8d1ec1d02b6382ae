"""Which parameters learn how fast, and which of them decay: groups as torch.optim takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from configs.errors import InputError
from configs.imports import import_callable
from configs.schema_training import OptimizerConfig
from trainer.networks.blocks import blocks
from trainer.networks.trained_parts import check_patterns, matches

Group = dict[str, Any]
"""`params`, and what is special about them: `weight_decay`, `lr_scale` (factor of the learning
rate), or any other argument of the optimizer."""
GROUPS_PROTOCOL = (
    "a function model -> list of groups, each a dict with `params` and, where it differs, "
    "`weight_decay`, `lr` or `lr_scale`; every trainable parameter in one of them"
)


def group_parameters(model: nn.Module, config: OptimizerConfig) -> list[nn.Parameter] | list[Group]:
    """The trainable parameters of a model, in groups if the config asks for more than one.

    Raises:
        InputError: If the user's function leaves parameters out, or names one twice.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if config.groups is not None:
        return _own_groups(model, config, named)
    kept = _undecayed(model) if config.weight_decay and not config.decay_norms_and_biases else set()
    scales = _scales(model, named, config)
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        key = (scales.get(name, 1.0), parameter in kept)
        found.setdefault(key, []).append(parameter)
    if not any(scale != 1.0 or no_decay for scale, no_decay in found):
        return list(named.values())
    return [
        {"params": members, "lr_scale": scale, "weight_decay": 0.0}
        if no_decay
        else {"params": members, "lr_scale": scale}
        for (scale, no_decay), members in found.items()
    ]


def _undecayed(model: nn.Module) -> set[nn.Parameter]:
    """Biases, scales and shifts of norms, and other vectors."""
    return {
        parameter
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if parameter.dim() <= 1 or isinstance(module, nn.LayerNorm)
    }


def _scales(
    model: nn.Module, named: dict[str, nn.Parameter], config: OptimizerConfig
) -> dict[str, float]:
    """layer_decay ** (layers between a parameter and the output), times its own factor, by name."""
    scales = dict.fromkeys(named, 1.0)
    if config.layer_decay is not None:
        depths = layer_depths(model, named)
        top = max(depths.values(), default=0)
        scales = {name: config.layer_decay ** (top - depth) for name, depth in depths.items()}
    factors = config.lr_factors
    check_patterns("optimizer.lr_factors", factors, (name for name, _ in model.named_parameters()))
    return {
        name: scale * next((f for pattern, f in factors.items() if matches(name, pattern)), 1.0)
        for name, scale in scales.items()
    }


def layer_depths(model: nn.Module, named: Iterable[str]) -> dict[str, int]:
    """The layer of every parameter, counted from the input.

    A block of the model (see networks/blocks.py) is a layer; what is registered before the first
    one is a layer below them, and what comes after a layer above. A model without blocks has its
    modules with weights as layers, in the order of registration. What has vectors only, such as a
    norm, belongs to the layer before it.
    """
    layers = blocks(model) or [m for m in model.modules() if list(m.parameters(recurse=False))]
    owner = {p: layer for layer in layers for p in layer.parameters()}
    heavy = {layer for layer in layers if any(p.dim() > 1 for p in layer.parameters())}
    names = set(named)
    depths: dict[str, int] = {}
    depth, current, seen = 0, None, False
    for name, parameter in model.named_parameters():
        layer = owner.get(parameter)
        starts = layer is not None and layer in heavy
        if layer is not current and (starts or (layer is None and seen)):
            depth += 1
            current = layer
        seen = seen or layer is not None
        if name in names:
            depths[name] = depth
    return depths


def _own_groups(
    model: nn.Module, config: OptimizerConfig, named: dict[str, nn.Parameter]
) -> list[Group]:
    assert config.groups is not None
    found = import_callable("optimizer.groups", config.groups, GROUPS_PROTOCOL, 1)(model)
    if not isinstance(found, (list, tuple)) or not all(
        isinstance(group, dict) and "params" in group for group in found
    ):
        raise InputError("optimizer.groups", given=config.groups, expected=GROUPS_PROTOCOL)
    groups = []
    for given in found:
        group = {**given, "params": [p for p in given["params"] if p.requires_grad]}
        group.setdefault("lr_scale", group.get("lr", config.lr) / config.lr)
        groups.append(group)
    members = Counter(parameter for group in groups for parameter in group["params"])
    left = [name for name, parameter in named.items() if members[parameter] != 1]
    if left or len(members) != len(named):
        raise InputError(
            "optimizer.groups",
            given=f"{', '.join(left) or 'parameters of another model'} not in exactly one group",
            expected=GROUPS_PROTOCOL,
        )
    return [group for group in groups if group["params"]]
