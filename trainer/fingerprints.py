"""What can be told apart of objects that a program passes to `fit`: a digest of each.

Code is known by what it was compiled to, tensors by their bytes, modules by their parts and shapes,
a data set by its length and a few samples. A digest must be the same when the same program is
started again, or it would not be continued: addresses, weights that may be drawn, and samples that
are drawn each time they are read are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.own_modules import name_in_repository
from data.loading.workers import borrowed_rng
from data.samples import Datasets
from trainer.ranks.rng import seed_stream

FEW_SAMPLES = 4
"""Of each set, spread evenly."""
MOST_BYTES = 1 << 26
"""Of a tensor; of a larger one only the beginning and the shape are looked at."""
PLAIN = (str, bytes, int, float, complex, bool, type(None), PurePath, torch.dtype, torch.device)
CONSTANT = (*PLAIN, tuple, frozenset, type, Tensor, nn.Module, functools.partial)
"""What counts of the variables that a function finds outside itself: a list may grow."""
CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType)
LOADS = "LOAD_GLOBAL"
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_non_persistent_buffers_set")


def import_path(value: Any) -> str | None:
    """The import path that leads to a class or function; None if none does in another process."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    if getattr(found, "__spec__", None) is None:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{name_in_repository(module)}:{name}" if found is value else None


def digest_of(value: Any) -> str:
    """SHA-256 of a factory, a loss, a metric, an optimizer's class or an argument."""
    return _digest(value, contents=True)


def digest_of_model(model: nn.Module) -> str:
    """SHA-256 of a module's classes, options, and names, shapes and types of its tensors."""
    return _digest(model, contents=False)


def digest_of_weights(model: nn.Module) -> str:
    """SHA-256 of its parameters and buffers."""
    return _digest(dict(model.state_dict()), contents=True)


def digest_of_data(sets: Any) -> str:
    """SHA-256 of the lengths, classes and some samples of data sets, one or several.

    A sample that is not the same when it is read again does not count.
    """
    parts = sets if isinstance(sets, list | tuple) else [sets]
    if isinstance(sets, Mapping):
        parts = list(sets.values())
    if isinstance(sets, Datasets):
        parts = [sets.train, sets.validation, sets.test]
    walker = Walker(contents=True)
    if isinstance(sets, Datasets):
        walker.add(sets.facts())
    for part in parts:
        walker.add(type(part))
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
            continue
        count = len(part)
        walker.add(count)
        for number in range(min(count, FEW_SAMPLES)):
            walker.add(_sample_digest(part, number * (count - 1) // max(FEW_SAMPLES - 1, 1)))
    return walker.hash.hexdigest()


def _sample_digest(data: Any, index: int) -> str:
    """Of one sample, read twice; empty if it is drawn anew each time, or cannot be read."""
    found = []
    for seed in (1, 2):
        with borrowed_rng():
            seed_stream(seed)
            try:
                found.append(_digest(data[index], contents=True))
            except Exception:  # whoever trains on it says what is wrong
                return ""
    return found[0] if found[0] == found[1] else ""


def _digest(value: Any, *, contents: bool) -> str:
    walker = Walker(contents=contents)
    walker.add(value)
    return walker.hash.hexdigest()


class Walker:
    """Feeds what is known of a value, and of what it is made of, to a hash.

    Args:
        contents: Whether the numbers in tensors and arrays count, or their shapes and types alone.
    """

    def __init__(self, *, contents: bool) -> None:
        self.contents = contents
        self.hash = hashlib.sha256()
        self.seen: dict[int, Any] = {}
        """What was fed, kept: an address must not be used again."""

    def add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.say(type(value).__name__, repr(value))
        elif isinstance(value, Tensor | np.ndarray):
            self._numbers(value)
        elif id(value) in self.seen:
            self.say("seen", type(value).__qualname__)
        else:
            self.seen[id(value)] = value
            self._parts(value)

    def say(self, *words: object) -> None:
        for word in words:
            text = str(word).encode()
            self.hash.update(len(text).to_bytes(8, "little") + text)

    def _parts(self, value: Any) -> None:
        self.say(name_in_repository(f"{type(value).__module__}.{type(value).__qualname__}"))
        if isinstance(value, Mapping):
            self._each(item for pair in value.items() for item in pair)
        elif isinstance(value, list | tuple):
            self._each(value)
        elif isinstance(value, set | frozenset):
            self.say(*sorted(_digest(item, contents=self.contents) for item in value))
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
            self._function_or_class(value)
        elif isinstance(value, types.MethodType):
            self._each([value.__func__, value.__self__])
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, property):
            self._each([value.fget, value.fset])
        elif isinstance(value, functools.partial):
            self._each([value.func, value.args, value.keywords])
        elif isinstance(value, types.ModuleType):
            self.say(name_in_repository(value.__name__))
        elif hasattr(value, "tobytes"):  # a picture
            self.hash.update(value.tobytes() if self.contents else b"")
        else:
            self._instance(value)

    def _each(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _numbers(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        self.say(type(value).__name__, value.dtype)
        if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
            return
        self.say(tuple(value.shape))
        if isinstance(value, nn.Parameter):
            self.say(value.requires_grad)
        elif not self.contents:
            return
        elif isinstance(value, np.ndarray):
            if not value.dtype.hasobject:
                some = value.reshape(-1)[: MOST_BYTES // max(value.itemsize, 1)]
                self.hash.update(some.tobytes())
        elif value.layout is torch.strided and not value.is_meta:
            begin = value.detach().reshape(-1)[: MOST_BYTES // value.element_size()]
            self.hash.update(begin.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def _function_or_class(self, value: Any) -> None:
        """What can be imported is known by its name, like an import path in a config."""
        path = import_path(value)
        if path is not None or isinstance(value, types.BuiltinFunctionType):
            self.say(path or value.__qualname__)
        elif isinstance(value, type):
            self._each(value.__bases__)
            for name, part in vars(value).items():
                if not name.startswith("__") or isinstance(part, types.FunctionType):
                    self._each([name, part])
        else:
            self._each([value.__code__, value.__defaults__, value.__kwdefaults__])
            for name, found in _looked_up(value):
                counts = isinstance(found, CONSTANT + CODE)
                self._each([name, found if counts else type(found).__qualname__])

    def _code(self, code: types.CodeType) -> None:
        self.say(code.co_code.hex(), code.co_names, code.co_varnames)
        self._each(code.co_consts)

    def _instance(self, value: Any) -> None:
        self.add(type(value))
        self.say(getattr(value, "__qualname__", ""))
        if dataclasses.is_dataclass(value):
            self._each(getattr(value, item.name) for item in dataclasses.fields(value))
        elif type(value).__module__.startswith(("torch._C", "builtins")):
            return
        else:
            for name, part in getattr(value, "__dict__", {}).items():
                if not name.endswith(HOOKS):
                    self._each([name, part])


def _looked_up(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds outside itself, by name: in the functions around it, and globally."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # empty as yet
            yield name, cell.cell_contents
    for name in dict.fromkeys(_global_names(code)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from (str(found.argval) for found in dis.get_instructions(code) if found.opname == LOADS)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _global_names(const)
