"""Which keys make a run the run it is, and which only say how it is executed."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from dataclasses import fields, is_dataclass
from typing import Any

from configs.schema import RunConfig


@functools.cache
def defines_mathematics(key: str) -> bool:
    """Whether another value under a dotted key makes it another run.

    That is said beside each field of the schema: by a plain default, or by `execution` for a field
    or a whole group that only says how, where or how far to run.

    Raises:
        KeyError: If no config has that key.
    """
    group: Any = RunConfig()
    said = []
    for name in key.split("."):
        declared = getattr(group, "__dataclass_fields__", {})[name]
        said.append(declared.metadata.get("defines_mathematics", True))
        group = getattr(group, name)
    return all(said)


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every leaf of a config under its dotted key, in field order; mappings that a user writes
    (kwargs, a batch schedule) are one leaf."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, group: Any) -> None:
        for item in fields(group):
            key, value = f"{prefix}{item.name}", getattr(group, item.name)
            if is_dataclass(value):
                walk(f"{key}.", value)
            else:
                flat[key] = list(value) if isinstance(value, tuple) else copy.deepcopy(value)

    walk("", config)
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Values under dotted keys -> a mapping of mappings, as in a YAML file."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return nested


def identity(config: RunConfig) -> dict[str, Any]:
    """The leaves that define the mathematics of a run."""
    return {key: value for key, value in flatten(config).items() if defines_mathematics(key)}


def digest(config: RunConfig) -> str:
    """SHA-256 of the run's identity; equal digests continue each other."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Every key whose value changed, with both.

    A key that the old run did not know yet had its default there: that is how keys are added.
    """
    normal, defaults = (
        json.loads(json.dumps(x, default=str)) for x in (new, identity(RunConfig()))
    )
    old = {key: defaults[key] for key in normal if key in defaults} | old
    return {
        key: (old.get(key), normal.get(key))
        for key in dict.fromkeys([*normal, *old])
        if old.get(key) != normal.get(key)
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """As in `optimizer.lr 0.001, now 0.0003; seed 1, now 2`."""
    return "; ".join(f"{key} {was!r}, now {now!r}" for key, (was, now) in changes(old, new).items())
