"""How a model is called with the inputs of a batch: decided once, from its signature."""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import Signature
from typing import Any

from torch import nn

from configs import imports
from configs.errors import InputError
from configs.imports import import_callable, named, signature_of, takes_any
from data.samples import Example
from data.structures import TARGETS, fields_of, is_record, outline

log = logging.getLogger("convoy")

Call = Callable[[nn.Module, Any, Any], Any]
"""The model, inputs of a batch, normalised, and its targets -> the outputs."""
PROTOCOL = "a callable (model, batch) -> outputs"
REMEDY = "Name a function (model, batch) -> outputs with --model.forward package.module:function."


def call_whole(module: nn.Module, inputs: Any, targets: Any) -> Any:
    """The model takes the inputs as one argument."""
    return module(inputs)


def choose_call(
    module: nn.Module, example: Example, forward: str | None, *, with_targets: bool = False
) -> Call:
    """How this model takes the inputs of such batches.

    Inputs with names go to the arguments of these names, without what is a target; several inputs
    go to as many positional arguments; else, and where the model has no such arguments, they are
    one argument, as a list with one item for every sample always is.

    Args:
        module: The model.
        example: The first sample of the training set.
        forward: Import path of the user's own `(model, batch) -> outputs`, `model.forward`.
        with_targets: Whether the model computes its loss itself, and is given the targets as well:
            by their name, or after the inputs.

    Raises:
        InputError: If the model takes the inputs in no way, with what it takes and what they are.
    """
    if forward is not None:
        return _own_call(import_callable("model.forward", forward, PROTOCOL, takes=2), example)
    inputs, targets, _ = example.batch()
    signature = signature_of(module.forward)
    if is_record(inputs):
        held = fields_of(inputs)
        names = set(held) - (set() if with_targets else set(TARGETS))
        if not takes_any(signature):
            names &= named(signature)
        if names:
            _require(module, signature, inputs, **{name: held[name] for name in names})
            _say_left_out(module, held, names)
            return lambda module, inputs, targets: module(
                **{name: value for name, value in fields_of(inputs).items() if name in names}
            )
    several = isinstance(inputs, tuple | list) and len(inputs) == len(example.batch(2).inputs)
    for apart in (True, False) if several else (False,):
        args = tuple(inputs) if apart else (inputs,)
        told = with_targets and targets is not inputs
        goal = _goal(signature, len(args)) if told else ()
        if not imports.misfit(signature, *args, **dict.fromkeys(goal)):
            return _positional(apart, goal)
    _require(module, signature, inputs, inputs)
    return call_whole


def _goal(signature: Signature, count: int) -> tuple[str, ...]:
    """The argument, if there is one, that targets go to after so many inputs: it is called so, or
    must be given."""
    rest = [p for name, p in signature.parameters.items() if name in named(signature)][count:]
    called = [p.name for p in rest if p.name in (*TARGETS, "y")]
    return tuple([*called, *(p.name for p in rest if p.default is p.empty)][:1])


def _positional(apart: bool, goal: tuple[str, ...]) -> Call:
    """Calls a model with inputs, each an argument or all of them one, and perhaps with targets."""
    if not apart and not goal:
        return call_whole

    def call(module: nn.Module, inputs: Any, targets: Any) -> Any:
        return module(*(inputs if apart else (inputs,)), **dict.fromkeys(goal, targets))

    return call


def takes(module: nn.Module, signature: Signature | None = None) -> str:
    """What a model takes, such as `Net.forward(inputs, mask=...)`."""
    words = imports.argument_names(signature or signature_of(module.forward))
    return f"{type(module).__name__}.forward({words})"


def _require(
    module: nn.Module, signature: Signature, inputs: Any, *args: Any, **kwargs: Any
) -> None:
    if reason := imports.misfit(signature, *args, **kwargs):
        raise InputError(
            f"inputs of the model ({reason})",
            given=outline(inputs),
            expected=f"what {takes(module, signature)} takes: one argument, as many as there are "
            "inputs, or the names of a batch that has names",
            remedy=REMEDY,
        )


def _say_left_out(module: nn.Module, held: dict[str, Any], names: set[str]) -> None:
    """A line about what the model is not given: it may be a name that is spelled otherwise."""
    if left := [name for name in held if name not in names and name not in TARGETS]:
        log.info(f"{takes(module)} is not given {', '.join(left)} of a batch: it has no such name")


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
