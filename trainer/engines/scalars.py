"""Parameters without a dimension, such as CLIP's temperature: FSDP cuts along the first one, so
they are given one of size 1, which neither the module that uses them nor a file sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from trainer.networks.activation_checkpointing import wrap_forward

NAMES = "_names_of_scalars"


def give_dimension(module: nn.Module) -> None:
    """Make every scalar parameter one of shape (1,), shown as it was while its module runs."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        held = part._parameters
        found = {name: p for name, p in held.items() if p is not None and not p.dim()}
        for name, p in found.items():
            held[name] = made.setdefault(p, nn.Parameter(p.detach().reshape(1), p.requires_grad))
        if found:
            vars(part)[NAMES] = tuple(found)
            wrap_forward(part, partial(partial, _showing, part))


def mark_scalars(module: nn.Module) -> None:
    """Let those who see a parameter alone know that it was a scalar: an optimizer's state."""
    for part in module.modules():
        for name in vars(part).get(NAMES, ()):
            vars(part._parameters[name])["was_scalar"] = True


def names_of_scalars(module: nn.Module) -> set[str]:
    """As its state dict has them."""
    return {
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        for name in vars(part).get(NAMES, ())
    }


def _showing(part: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """No hook does: activation checkpointing runs a block a second time without them."""
    for name in vars(part)[NAMES]:
        vars(part)[name] = getattr(part, name).reshape(())
    try:
        return forward(*args, **kwargs)
    finally:
        for name in vars(part)[NAMES]:
            vars(part).pop(name, None)
