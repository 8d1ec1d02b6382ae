"""A copy of a module that stands by itself."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from configs.errors import InputError


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, with the hooks on its weights.

    Python copies a function by reference: one that has closed over a layer, as a `forward` put
    into an instance often has, would compute with the weights of the original.

    Raises:
        InputError: For such a function, and for what cannot be copied.
    """
    own = {id(held) for held in (*module.modules(), *module.parameters(), *module.buffers())}
    for path, part in module.named_modules():
        for name, function in _functions(part):
            if _holds(function, own, {id(function)}):
                raise InputError(
                    f"{name} of {path or type(module).__name__}",
                    given="a function that holds on to the module it was made for",
                    expected="one that takes it from its arguments, since an average, or fit(), "
                    "trains or evaluates a copy, and the copy would use the original's weights",
                    remedy="Write it as a method of a class, or pass fit() a function that makes "
                    "the model.",
                )
    try:
        made = copy.deepcopy(module)
    except (TypeError, RuntimeError) as error:
        kind = type(module).__name__
        raise InputError(
            "model",
            given=f"a {kind} that cannot be copied ({' '.join(str(error).split())[:200]})",
            expected="a module that can be, since an average and fit() work with copies, or for "
            "fit() a function that makes one",
            remedy=f"Pass fit() model=lambda: {kind}(...); instead of torch.nn.utils.weight_norm "
            "use torch.nn.utils.parametrizations.weight_norm.",
        ) from None
    for mine, theirs in zip(module.parameters(), made.parameters(), strict=True):
        for hook in (mine._backward_hooks or {}).values():
            theirs.register_hook(hook)  # type: ignore[no-untyped-call]
        for hook in (mine._post_accumulate_grad_hooks or {}).values():
            theirs.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    return made


def hooked_weights(module: nn.Module) -> list[str]:
    """Names of parameters with hooks of their own."""
    return [
        name
        for name, p in module.named_parameters()
        if p._backward_hooks or p._post_accumulate_grad_hooks
    ]


def _functions(part: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Functions among the attributes of a module, its hooks included."""
    for name, value in vars(part).items():
        for held in value.values() if isinstance(value, dict) else (value,):
            if isinstance(held, FunctionType):
                yield name, held


def _holds(function: FunctionType, own: set[int], seen: set[int]) -> bool:
    """Whether a function has closed over one of some objects, or knows it as a global."""
    found: list[Any] = list(function.__defaults__ or ())
    with contextlib.suppress(ValueError):  # a name that has no value yet
        known = inspect.getclosurevars(function)
        found += [*known.nonlocals.values(), *known.globals.values()]
    for value in found:
        if isinstance(value, MethodType):
            value = value.__self__
        if id(value) in own:
            return True
        if isinstance(value, FunctionType) and id(value) not in seen:
            seen.add(id(value))
            if _holds(value, own, seen):
                return True
    return False
