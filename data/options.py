"""`data.kwargs` as the options of a data set, and `data.root` as its folder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from configs.errors import InputError
from configs.schema import DataConfig

T = TypeVar("T")
HERE = Path(__file__).resolve().parents[1]
MADE_OF = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "Any": "anything",
}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of a data set that has none."""


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
            close = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                f"data.kwargs of {config.dataset}",
                given=key,
                expected=f"one of {', '.join(known)}" if known else "none",
                remedy=f"Did you mean {close[0]!r}?" if close else "",
            )
        if not _fits(value, hints[key]):
            raise InputError(f"data.kwargs.{key}", given=value, expected=_describe(hints[key]))
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
        return isinstance(value, list | tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list, each {_describe(get_args(hint)[0])}"
    name = getattr(hint, "__name__", str(hint))
    return MADE_OF.get(name, name)
