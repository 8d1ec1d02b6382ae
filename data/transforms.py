"""Training transforms of single images: torchvision's by name, or anybody's by import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError, did_you_mean
from configs.imports import call_with, import_extra, import_object, is_import_path

KEY = "data.kwargs.augment"
Transform = Callable[[Tensor], Any]
"""uint8 `(C, H, W)` -> uint8 `(C, h, w)`; random numbers from the global generators."""
PROTOCOL = (
    "a list of transforms, each a name in torchvision.transforms.v2, an import path "
    "`package.module:attribute`, or a mapping {NAME: {ITS ARGUMENTS}}"
)


def build_transforms(entries: Sequence[Any]) -> list[Transform]:
    """The transforms that a config lists, in its order.

    Args:
        entries: `RandomHorizontalFlip`, or `{RandomResizedCrop: {size: 224}}`.

    Raises:
        InputError: For an unknown name, arguments that do not fit, and a missing torchvision.
    """
    return [_build(entry) for entry in entries]


def apply(transforms: Sequence[Transform], image: Tensor) -> Tensor:
    """One image through all of them.

    Raises:
        InputError: If what comes out is not an image of the same type and number of channels.
    """
    for transform in transforms:
        image = transform(image)
        if not (isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3):
            what = f"{image.dtype}{tuple(image.shape)}" if isinstance(image, Tensor) else image
            raise InputError(
                KEY,
                given=f"{type(transform).__name__} gives {what}",
                expected="uint8 images (channels, height, width); they are normalised afterwards",
                remedy="Leave out transforms that convert or normalise.",
            )
    return image


def _build(entry: Any) -> Transform:
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, kwargs = next(iter(entry.items()))
    else:
        name, kwargs = entry, {}
    if not isinstance(name, str) or not isinstance(kwargs, Mapping | None):
        raise InputError(KEY, given=entry, expected=PROTOCOL)
    target = import_object(KEY, name) if is_import_path(name) else _from_torchvision(name)
    if not isinstance(target, type):
        if callable(target) and not kwargs:
            return target  # type: ignore[no-any-return]
        raise InputError(KEY, given=entry, expected=PROTOCOL)
    try:
        made = call_with(KEY, target, dict(kwargs or {}), {})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(KEY, given=entry, expected=f"arguments it accepts ({error})") from None
    if not callable(made):
        raise InputError(KEY, given=entry, expected=PROTOCOL)
    return made  # type: ignore[no-any-return]


def _from_torchvision(name: str) -> Any:
    v2 = _import_torchvision()
    known = [
        key
        for key, value in vars(v2).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module) and key != "Transform"
    ]
    if name not in known:
        raise InputError(
            KEY,
            given=name,
            expected="a transform of torchvision.transforms.v2 or an import path",
            remedy=did_you_mean(name, known),
        )
    return getattr(v2, name)


def _import_torchvision() -> Any:
    try:
        return import_extra("torchvision.transforms.v2", "vision")
    except RuntimeError as error:  # its compiled part was made for another torch
        raise InputError(
            f"torchvision does not fit torch {torch.__version__} ({error})",
            expected="a torchvision built for it",
            remedy="Install both from the same place: beside a CPU build of torch run "
            "`pip install torchvision --index-url https://download.pytorch.org/whl/cpu`.",
        ) from None
