"""Tensors nested in tuples, lists, mappings, dataclasses and named tuples, treated as one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

TARGETS = ("labels", "label", "targets", "target")
"""Names under which a batch that has names holds what is to be learned."""


def map_tensors(function: Callable[[Tensor], Any], structure: Any) -> Any:
    """The same structure with every tensor in it replaced; what is no tensor stays as it is."""
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, Mapping):
        values = {key: map_tensors(function, value) for key, value in structure.items()}
        if type(structure) is dict or not isinstance(structure, MutableMapping):
            return values
        changed = copy.copy(structure)  # a type of its own, such as an output of transformers
        for key, value in values.items():
            changed[key] = value
        return changed
    if isinstance(structure, tuple | list):
        items = [map_tensors(function, item) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)
    if is_record(structure):
        named = fields_of(structure)
        return dataclasses.replace(
            structure, **{name: map_tensors(function, value) for name, value in named.items()}
        )
    return structure


def floats_as(dtype: torch.dtype, structure: Any) -> Any:
    """The same structure with its floating-point tensors in another type."""
    return map_tensors(
        lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, structure
    )


def tensors(structure: Any) -> Iterator[Tensor]:
    """Every tensor in a structure, in its order."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, Mapping):
        for value in structure.values():
            yield from tensors(value)
    elif isinstance(structure, tuple | list):
        for item in structure:
            yield from tensors(item)
    elif is_record(structure):
        yield from tensors(fields_of(structure))


def as_tensor_or_none(part: Any) -> Tensor | None:
    """A number, or an array of numbers, as a tensor; None for anything else."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, int | float) or hasattr(part, "__array__"):
        try:
            return torch.as_tensor(part)
        except (TypeError, ValueError, RuntimeError):
            return None
    return None


def is_record(structure: Any) -> bool:
    """Whether it has names for its parts: a mapping, a dataclass or a named tuple."""
    if isinstance(structure, Mapping) or hasattr(structure, "_fields"):
        return True
    return dataclasses.is_dataclass(structure) and not isinstance(structure, type)


def fields_of(record: Any) -> dict[str, Any]:
    """The parts of a record by name."""
    if isinstance(record, Mapping):
        return dict(record)
    if hasattr(record, "_fields"):
        return dict(zip(record._fields, record, strict=True))
    return {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}


def split(content: Any) -> tuple[Any, Any]:
    """Inputs and targets of a sample, or of a batch, as a user's data set gives it.

    Of a tuple or list the last part is the target, and the parts before are the inputs. A record
    is its own input, and what has a name in `TARGETS` is the target. Where nothing is a target, the
    whole is: an autoencoder learns its input.
    """
    if is_record(content):
        named = fields_of(content)
        return content, next((named[name] for name in TARGETS if name in named), content)
    if not isinstance(content, tuple | list):
        return content, content
    *inputs, target = content
    return (inputs[0] if len(inputs) == 1 else tuple(inputs) or target), target


def outline(structure: Any) -> str:
    """Shapes and types in words, such as `{ids: (4, 128) int64, mask: (4, 128) bool}`."""
    if isinstance(structure, Tensor):
        return f"{tuple(structure.shape)} {str(structure.dtype).removeprefix('torch.')}"
    if is_record(structure):
        named = fields_of(structure).items()
        return "{" + ", ".join(f"{name}: {outline(value)}" for name, value in named) + "}"
    if isinstance(structure, tuple | list):
        return "(" + ", ".join(outline(item) for item in structure) + ")"
    return type(structure).__name__
