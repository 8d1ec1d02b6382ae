"""How a model is called with the inputs of a batch: decided once, from its signature."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Signature
from typing import Any

from torch import nn

from configs.imports import import_callable, named, signature_of, takes_any
from data.samples import Example
from data.structures import TARGETS, fields_of, is_record

Call = Callable[[nn.Module, Any, Any], Any]
"""The model, inputs of a batch, normalised, and its targets -> the outputs."""
PROTOCOL = "a callable (model, batch) -> outputs"


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
        return _own_call(import_callable("model.forward", forward, PROTOCOL), example)
    inputs = example.batch().inputs
    left_out = () if with_targets else TARGETS
    signature = signature_of(module.forward)
    if is_record(inputs):
        names = {name for name in fields_of(inputs) if name not in left_out}
        if not takes_any(signature):
            names &= named(signature)
        if names:
            return lambda module, inputs, targets: module(
                **{name: value for name, value in fields_of(inputs).items() if name in names}
            )
    elif isinstance(inputs, tuple | list) and _takes(signature, len(inputs)):
        return lambda module, inputs, targets: module(*inputs)
    return call_whole


def _takes(signature: Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _own_call(forward: Callable[..., Any], example: Example) -> Call:
    """The user's function, which gets a batch as the data set's samples are made."""
    content = example.content()
    if is_record(content) or not isinstance(content, tuple | list):
        return lambda module, inputs, targets: forward(module, inputs)
    if len(content) == 1:
        return lambda module, inputs, targets: forward(module, (inputs,))
    if len(content) == 2:
        return lambda module, inputs, targets: forward(module, (inputs, targets))
    return lambda module, inputs, targets: forward(module, (*inputs, targets))
