"""How a field of the schema says that it does not define the mathematics of a run.

A plain default says that it does: with another value there it is another run, and a checkpoint does
not continue it. That is the safe side for a new key.
"""

from __future__ import annotations

from dataclasses import field
from types import MappingProxyType
from typing import TypeVar

T = TypeVar("T")
EXECUTION = MappingProxyType({"defines_mathematics": False})
"""Metadata of a dataclass field, or of a group, that says only how a run is executed."""


def execution(default: T) -> T:
    """A config field that says only how, where or how far to run, with its immutable default.

    Changing its value continues the same run.
    """
    return field(default=default, metadata=EXECUTION)
