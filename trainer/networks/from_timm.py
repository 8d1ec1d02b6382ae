"""Models of timm (https://huggingface.co/docs/timm), called `timm/NAME` in a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from configs.errors import InputError, did_you_mean, one_line
from configs.imports import import_extra
from configs.trust import require_trust

PREFIX = "timm/"
WEIGHTS = ("pretrained", "checkpoint_path")
"""Arguments that say where weights come from."""
FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments that name files which timm unpickles."""


def timm_model(
    name: str, *, input_shape: Sequence[int], num_classes: int, **kwargs: Any
) -> nn.Module:
    """Build the model that timm calls `name` for the channels, image size and classes of the data.

    Args:
        name: As in `timm.list_models()`, with or without a tag of pretrained weights.
        input_shape: `(channels, height, width)`.
        num_classes: Number of logits.
        **kwargs: Further arguments of `timm.create_model`, such as `pretrained`.

    Raises:
        InputError: If timm is missing, knows no such model, or cannot build it for these inputs.
    """
    for key in FILES:
        if kwargs.get(key) is not None:
            require_trust(f"model.kwargs.{key}", kwargs[key])
    timm = _import_timm()
    _check_name(timm, name)
    channels, *size = input_shape
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
    arguments: dict[str, Any] = {"in_chans": channels, "num_classes": num_classes}
    if fixed is not None and fixed.fixed_input_size:
        arguments["img_size"] = tuple(size)
    # What timm and its hub raise for a wrong argument has no class of its own.
    try:
        model: nn.Module = timm.create_model(name, **{**arguments, **kwargs})
        _try(model, input_shape)
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        reason = one_line(error)
        raise InputError(
            f"model.name={PREFIX}{name} cannot be built for inputs {tuple(input_shape)}",
            given=kwargs or None,
            expected=f"what timm.create_model takes ({type(error).__name__}: {reason})",
            remedy="Give arguments of its own, or none with --model.kwargs '{}'." if kwargs else "",
        ) from None
    return model


def _import_timm() -> Any:
    """The module timm, or an InputError that says how to get it."""
    try:
        import_extra("torchvision", "timm")  # which timm imports
        return import_extra("timm", "timm")
    except RuntimeError as error:  # libraries of another build cannot be loaded
        raise InputError(
            f"timm cannot be imported ({error})",
            expected=f"a torchvision that was built for torch {torch.__version__}",
            remedy="Install torch and torchvision from the same index, see "
            "https://pytorch.org/get-started/locally.",
        ) from None


def _check_name(timm: Any, name: str) -> None:
    """Refuse a name that timm does not have; a tag of pretrained weights follows after a dot."""
    known = timm.list_models(pretrained="." in name)
    if name not in known:
        raise InputError(
            "model.name",
            given=f"{PREFIX}{name}",
            expected="a name that timm.list_models() has",
            remedy=did_you_mean(name, known, most=3, prefix=PREFIX),
        )


def _try(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Run one forward pass: many models find out only then that an image is too small."""
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, *input_shape))
    model.train()
