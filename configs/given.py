"""Objects that a program hands to a run where a config holds import paths.

The config holds a reference in their place, `given:NAME@DIGEST`, so that it stays text: it is
saved, compared and read like any other. What a reference stands for is known only inside
`handing_over`, in the program that has the objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from configs.errors import InputError

PREFIX = "given:"


@dataclass(frozen=True, slots=True)
class Given:
    """An object in place of an import path."""

    value: Any
    """What the import path would lead to."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is written down of it beside its reference: plain values."""


_OBJECTS: ContextVar[Mapping[str, Given] | None] = ContextVar("objects", default=None)


@contextmanager
def handing_over(objects: Mapping[str, Given]) -> Iterator[None]:
    """Let references lead to these objects inside."""
    token = _OBJECTS.set(objects)
    try:
        yield
    finally:
        _OBJECTS.reset(token)


def handed_over() -> Mapping[str, Given]:
    """The objects of this run by reference."""
    return _OBJECTS.get() or {}


def is_given(name: object) -> bool:
    return isinstance(name, str) and name.startswith(PREFIX)


def given_object(key: str, reference: str) -> Any:
    """What a reference stands for.

    Raises:
        InputError: In any other program than the one that has the object.
    """
    found = handed_over().get(reference)
    if found is None:
        name = reference.removeprefix(PREFIX).partition("@")[0]
        raise InputError(
            key,
            given=reference,
            expected="an import path `module:attribute`",
            remedy=f"A program passed {name!r} to fit() as an object, and only that program has "
            "it. Call fit() there again, which gives back a finished run at once; or keep what "
            "makes it in a module, and write its import path here.",
        )
    return found.value


def with_objects(key: str, value: Any) -> Any:
    """Arguments of the user's with objects in place of references, in lists and mappings too."""
    if is_given(value):
        return given_object(key, value)
    if isinstance(value, dict):
        return {name: with_objects(key, item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_objects(key, item) for item in value]
    return value
