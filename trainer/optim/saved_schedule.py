"""What a checkpoint may say of a scheduler: values of the kinds that a fresh one has."""

from __future__ import annotations

from typing import Any


def alike(name: str, saved: Any, fresh: Any) -> Any:
    """The saved value without the keys that a fresh one lacks, such as those of an older torch.

    Raises:
        ValueError: With the dotted name of what is of another kind.
    """
    if isinstance(fresh, dict) and isinstance(saved, dict):
        known = {key: value for key, value in saved.items() if key in fresh}
        return {key: alike(f"{name}.{key}", value, fresh[key]) for key, value in known.items()}
    if isinstance(fresh, list | tuple) and isinstance(saved, list | tuple):
        if len(saved) == len(fresh):
            return type(fresh)(alike(name, *pair) for pair in zip(saved, fresh, strict=True))
    elif _kind(saved) is _kind(fresh) or (fresh is None and isinstance(saved, int | float | str)):
        return saved
    raise ValueError(f"{name} of trainer.pt is {str(saved)[:60]!r}, not like {str(fresh)[:60]!r}")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)
