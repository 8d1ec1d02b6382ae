"""How a model is called with the inputs of a batch: decided once, from its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from configs.errors import InputError
from configs.imports import import_object
from data.samples import Example
from data.structures import TARGETS, fields_of, is_record

Call = Callable[[nn.Module, Any, Any], Any]
"""The model, inputs of a batch, normalised, and its targets -> the outputs."""


def call_whole(module: nn.Module, inputs: Any, targets: Any) -> Any:
    """The model takes the inputs as one argument."""
    return module(inputs)


def choose_call(
    module: nn.Module, example: Example, forward: str | None, *, with_targets: bool = False
) -> Call:
    """How this model takes the inputs of such batches.

    Inputs with names go to the arguments of these names, without what is a target; several inputs
    go to as many positional arguments; else, and where the model has no such arguments, they are
    one argument.

    Args:
        module: The model.
        example: The first sample of the training set.
        forward: Import path of the user's own `(model, batch) -> outputs`, `model.forward`.
        with_targets: Whether the model computes its loss itself, from targets that have a name.

    Raises:
        InputError: If that is no callable.
    """
    if forward is not None:
        return _own_call(import_object("model.forward", forward), forward, example)
    inputs = example.batch().inputs
    left_out = () if with_targets else TARGETS
    parameters = inspect.signature(module.forward).parameters.values()
    if is_record(inputs):
        names = _accepted(parameters, [n for n in fields_of(inputs) if n not in left_out])
        if names:
            return lambda module, inputs, targets: module(
                **{name: value for name, value in fields_of(inputs).items() if name in names}
            )
    elif isinstance(inputs, tuple | list) and _takes(module, len(inputs)):
        return lambda module, inputs, targets: module(*inputs)
    return call_whole


def _accepted(parameters: Any, names: list[str]) -> set[str]:
    """Which inputs a function takes by name; all if it takes any."""
    kinds = {p.name: p.kind for p in parameters}
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        return set(names)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name in names if kinds.get(name) in by_name}


def _takes(module: nn.Module, count: int) -> bool:
    try:
        inspect.signature(module.forward).bind(*range(count))
    except TypeError:
        return False
    return True


def _own_call(forward: Any, path: str, example: Example) -> Call:
    """The user's function, which gets a batch as the data set's samples are made."""
    if not callable(forward):
        raise InputError(
            "model.forward", given=path, expected="a callable (model, batch) -> outputs"
        )
    content = example.content()
    if is_record(content) or not isinstance(content, tuple | list):
        return lambda module, inputs, targets: forward(module, inputs)
    if len(content) == 1:
        return lambda module, inputs, targets: forward(module, (inputs,))
    if len(content) == 2:
        return lambda module, inputs, targets: forward(module, (inputs, targets))
    return lambda module, inputs, targets: forward(module, (*inputs, targets))
