"""`data.kwargs` as the options of a data set, and `data.root` as its folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from configs.errors import InputError, did_you_mean, expect
from configs.keys import describe
from configs.schema import DataConfig

T = TypeVar("T")
NUMBERS = tuple[float, ...]
"""The type of an option that one number can be given for."""
HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a data set that has none."""


@dataclass(frozen=True, kw_only=True)
class MomentOptions:
    """How inputs are normalised, where a data set lets that be said."""

    mean: tuple[float, ...] = ()
    """Mean of the inputs (uint8: divided by 255): one number, or one per channel or feature."""
    std: tuple[float, ...] = ()
    """Their standard deviation, given together with the mean."""

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, self.mean))
        expect(self, "data.kwargs.mean", finite, "numbers that are finite")
        positive = all(0 < value < math.inf for value in self.std)
        expect(self, "data.kwargs.std", positive, "numbers above 0")
        together = bool(self.mean) == bool(self.std)
        both = "both data.kwargs.mean and data.kwargs.std, or neither"
        expect(self, "data.kwargs.mean", together, both)

    def given(self, shape: Sequence[int]) -> dict[str, Any]:
        """Mean and deviation for inputs of that shape; empty if they are to be found.

        Raises:
            InputError: If there are neither one nor as many as channels or features.
        """
        for key, values in (("mean", self.mean), ("std", self.std)):
            right = len(values) in (0, 1, *shape[:1])
            some = f"one number, or one for each of {shape[0]} channels or features"
            expect(self, f"data.kwargs.{key}", right, some)
        return {"mean": self.mean, "std": self.std} if self.mean else {}


def refuse_options(config: DataConfig) -> None:
    read_options(NoOptions, config)


def read_options(kind: type[T], config: DataConfig) -> T:
    """`data.kwargs` as a dataclass of options, which checks ranges itself.

    Raises:
        InputError: For an unknown key, with the closest one, and for a value of another type.
    """
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in config.kwargs.items():
        if key not in known:
            raise InputError(
                f"data.kwargs of {config.dataset}",
                given=key,
                expected=f"one of {', '.join(known)}" if known else "none",
                remedy=did_you_mean(key, known),
            )
        if not _fits(value, hints[key]):
            raise InputError(f"data.kwargs.{key}", given=value, expected=describe(hints[key]))
        if hints[key] == NUMBERS and not isinstance(value, list | tuple):
            value = (value,)
        values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def folder_of(root: str | None, what: str) -> Path:
    """`data.root` as a folder that exists.

    Args:
        root: As configured.
        what: What lies in it, for the message.

    Raises:
        InputError: If it is not given or does not exist.
    """
    if root is None:
        raise InputError("data.root", expected=f"the folder of {what}")
    folder = Path(root).expanduser()
    if not folder.is_dir() and not folder.is_absolute() and (HERE / folder).is_dir():
        return HERE / folder  # what comes with the project, wherever a command is started
    if not folder.is_dir():
        raise InputError("data.root", given=root, expected="a folder that exists")
    return folder


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in inner)
    if origin is tuple:  # tuple[T, ...]
        if isinstance(value, list | tuple):
            return all(_fits(item, inner[0]) for item in value)
        return hint == NUMBERS and _fits(value, float)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))
