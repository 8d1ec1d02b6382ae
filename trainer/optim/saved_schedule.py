"""What a checkpoint may say of a scheduler: values of the kinds that a fresh one has."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

MOVING = frozenset(
    [
        *("last_epoch", "_last_lr", "_step_count", "_is_initial", "_schedulers", "T_cur", "T_i"),
        *("best", "num_bad_epochs", "cooldown_counter"),
    ]
)
"""What steps change in torch's schedulers; everything else follows from the config."""


def alike(name: str, saved: Any, fresh: Any, keys: Set[str] | None = None) -> Any:
    """The fresh value with what is saved in its place; other keys than it has are left out.

    Args:
        name: Dotted, for the message.
        saved: From a checkpoint.
        fresh: Numbers, text, lists and mappings of them.
        keys: Of mappings, those that are taken; None: all.

    Raises:
        ValueError: With the name of what is of another kind.
    """
    if isinstance(fresh, dict) and isinstance(saved, dict):
        taken = saved.keys() if keys is None else saved.keys() & keys
        return {
            key: alike(f"{name}.{key}", saved[key], value, keys) if key in taken else value
            for key, value in fresh.items()
        }
    if isinstance(fresh, list | tuple) and isinstance(saved, list | tuple):
        if len(saved) == len(fresh):
            pairs = zip(saved, fresh, strict=True)
            return type(fresh)(alike(name, *pair, keys) for pair in pairs)
    elif _kind(saved) is _kind(fresh):
        return saved
    raise ValueError(f"{name} of trainer.pt is {str(saved)[:60]!r}, not like {str(fresh)[:60]!r}")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
