"""The keys of a config, and what each of them takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from configs.schema import RunConfig

WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
    Any: "anything",
    list[str]: "a list of texts",
    tuple[float, ...]: "a number, or a list of numbers",  # as options of data take them
}


def known_keys() -> list[str]:
    """Every dotted key, groups included."""
    return list(_walk(RunConfig, ""))


def _walk(kind: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(kind).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from _walk(hint, f"{prefix}{name}.")


def hint_of(key: str) -> Any:
    """The type of a dotted key, None for an unknown one."""
    hint: Any = RunConfig
    for name in key.split("."):
        hint = get_type_hints(hint).get(name) if is_dataclass(hint) else None
    return hint


def is_group(key: str) -> bool:
    return is_dataclass(hint_of(key))


def is_mapping(key: str) -> bool:
    return get_origin(hint_of(key)) is dict


def takes_null(key: str) -> bool:
    return NoneType in get_args(hint_of(key))


def describe(hint: Any) -> str:
    """A type as a person would say it: `int | None` -> 'a whole number or null'."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    if origin is tuple and hint not in WORDS:
        return f"a list, each {describe(inner[0])}"
    if origin is dict:
        return "a mapping"
    return WORDS.get(hint) or str(getattr(hint, "__name__", hint))
