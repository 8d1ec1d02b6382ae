"""Modules built without memory, and filled tensor by tensor with the values they would have had.

A model that only its ranks together can hold is built on the device `meta`, where tensors have
shapes and no values. What its constructors do to them is written down, and done later in the same
order, under the same seed: random numbers are drawn one after the other, so every tensor gets the
bits that it has in a model that was built whole. In between, only what is still to be changed is in
memory: a tensor is handed over after the last operation on it, and what will be overwritten anyway,
such as the first weights of a layer that its network initialises again, is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from configs.errors import InputError, one_line

META = torch.device("meta")
IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]
FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
"""Their values are given, and on meta they would be lost."""
OVERWRITING = frozenset(
    [
        *("uniform_", "normal_", "zero_", "fill_", "copy_", "exponential_", "random_"),
        *("_no_grad_trunc_normal_", "orthogonal_", "dirac_", "sparse_"),  # of torch.nn.init
    ]
)
"""Operations after which nothing of a tensor is as it was."""


class NotDeferred(Exception):
    """A module that cannot be built without memory, and why."""


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as part of a storage that has no memory yet."""

    storage: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.size).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Operation:
    function: Callable[..., Any]
    args: Any
    kwargs: Any
    results: list[int]
    """Storages that it makes, in the order of its outputs."""
    uses: frozenset[int]
    """Storages that it reads or changes."""
    overwrites: int | None
    """The storage of which nothing stays as it was."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what happens to tensors on meta."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[_Operation] = []
        self.storages: dict[int, torch.UntypedStorage] = {}
        """Kept, so that no other gets the same number."""
        self.given: list[tuple[Tensor, int]] = []
        """Tensors with values that took part, and how often they had been changed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        results = [out for out in tree_leaves(found) if isinstance(out, Tensor) and out.is_meta]
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not results and not any(tensor.is_meta for tensor in inputs):
            return found
        used = {self.number(tensor) for tensor in inputs if tensor.is_meta}
        made = [number for out in results if (number := self.number(out)) not in used]
        changes = func._schema.is_mutable
        if made or changes:
            self.given += [(tensor, tensor._version) for tensor in inputs if not tensor.is_meta]
            views, named = tree_map(self.view, (args, kwargs))
            name = func._schema.name.partition("::")[2]
            overwrites = self.overwritten(name, views) if changes else None
            self.operations.append(
                _Operation(func, views, named, made, frozenset(used), overwrites)
            )
        return found

    def number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        number: int = storage._cdata
        self.storages.setdefault(number, storage)
        return number

    def view(self, value: Any) -> Any:
        """What stands for an argument until there is memory."""
        if isinstance(value, torch.device) and value == META:
            return torch.device("cpu")
        if not isinstance(value, Tensor) or not value.is_meta:
            return value
        return _View(
            self.number(value),
            tuple(value.size()),
            tuple(value.stride()),
            int(value.storage_offset()),
            value.dtype,
        )

    def overwritten(self, name: str, args: Any) -> int | None:
        """The storage that an operation fills, if nothing of it stays and nothing of it is read."""
        views = [leaf for leaf in tree_leaves(args) if isinstance(leaf, _View)]
        if name not in OVERWRITING or not views:
            return None
        target, *others = views
        filled = target.num_bytes == self.storages[target.storage].nbytes()
        alone = all(other.storage != target.storage for other in others)
        return target.storage if filled and alone else None

    def initialise(self, name: str, args: Sequence[Any]) -> None:
        """Write down a call of a function of torch.nn.init that would do nothing on meta."""
        views = tuple(map(self.view, args))
        used = frozenset(view.storage for view in views if isinstance(view, _View))
        function = getattr(nn.init, name)
        overwrites = self.overwritten(name, views)
        self.operations.append(_Operation(function, views, {}, [], used, overwrites))


class _OnMeta(TorchFunctionMode):
    """Functions that make tensors make them on meta, unless their values are given.

    Some functions of torch.nn.init look at values they draw, and leave tensors on meta alone. They
    are seen when they ask whether a tensor is.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == IS_META and args[0].device == META:
            self._asked(sys._getframe(1))
        makes = func in _device_constructors() and func not in FROM_VALUES
        if makes and kwargs.get("device") is None:
            kwargs["device"] = META
        return func(*args, **kwargs)

    def _asked(self, frame: FrameType) -> None:
        """Somebody wants to know whether a tensor is on meta.

        Raises:
            NotDeferred: If it is code that may then leave out what it would have done.
        """
        code, module = frame.f_code, str(frame.f_globals.get("__name__"))
        if module == nn.init.__name__:
            names = code.co_varnames[: code.co_argcount]
            self.recorder.initialise(code.co_name, [frame.f_locals[name] for name in names])
        elif not module.startswith("torch."):
            raise NotDeferred(f"{module} does otherwise with tensors on meta")


class Deferred:
    """A module on meta, and what gives it its values.

    Args:
        build: Makes the module, on the CPU if nothing else is said.
        seed: Called before the values are drawn: sets the random generators as they are when
            `build` is called.

    Raises:
        NotDeferred: If the module wants to know values while it is built, or keeps tensors that
            are neither parameters nor buffers.
    """

    def __init__(self, build: Callable[[], nn.Module], seed: Callable[[], None]) -> None:
        self.seed = seed
        recorder = _Recorder()
        seed()
        try:
            with _OnMeta(recorder), recorder:
                self.module = build()
        except (InputError, NotDeferred):
            raise
        except Exception as error:  # whatever a constructor raises that misses its values
            raise NotDeferred(one_line(error, named=True)) from None
        if any(tensor._version != version for tensor, version in recorder.given):
            raise NotDeferred("it changes tensors that it has made others of")
        if any(map(is_lazy, (*self.module.parameters(), *self.module.buffers()))):
            raise NotDeferred("the first sample says what shapes its weights have")
        if not any(parameter.is_meta for parameter in self.module.parameters()):
            raise NotDeferred("it comes with its weights")
        _check_attributes(self.module)
        self.operations = recorder.operations
        self.sizes = {n: storage.nbytes() for n, storage in recorder.storages.items()}
        self.kept: dict[int, list[tuple[str, _View]]] = {}
        self.given: dict[str, Tensor] = {}
        moved: dict[Tensor, Tensor] = {}
        for path, part in self.module.named_modules():
            for slots in (part._parameters, part._buffers):
                for key, tensor in slots.items():
                    if tensor is None:
                        continue
                    name = f"{path}.{key}".lstrip(".")
                    if tensor.is_meta:
                        view = recorder.view(tensor)
                        self.kept.setdefault(view.storage, []).append((name, view))
                    else:
                        self.given[name] = tensor.detach()
                        slots[key] = moved.setdefault(tensor, _on_meta(tensor))

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer by name, whole, on the CPU, in any order; to be asked once.

        Nobody may draw random numbers in between. Who keeps a tensor keeps its memory.
        """
        yield from self.given.items()
        self.seed()
        memory: dict[int, torch.UntypedStorage] = {}
        drops, last = self._drops()
        for position, operation in enumerate(self.operations):
            self._do(operation, memory)
            for number in drops.get(position, ()):
                storage = memory.pop(number)
                if last[number] != position:
                    continue  # it is overwritten before anybody looks
                for name, view in self.kept.get(number, ()):
                    yield name, _tensor(view, storage)
                del storage
        self.operations, self.given = [], {}  # what took part may be large

    def _drops(self) -> tuple[dict[int, list[int]], dict[int, int]]:
        """Storages whose content nobody needs after an operation, by the operation's position; and
        the position of the last one of each."""
        last: dict[int, int] = {}
        drops: dict[int, list[int]] = {}
        for position, operation in enumerate(self.operations):
            if operation.overwrites is not None and operation.overwrites in last:
                drops.setdefault(last[operation.overwrites], []).append(operation.overwrites)
            for number in (*operation.uses, *operation.results):
                last[number] = position
        for number, position in last.items():
            drops.setdefault(position, []).append(number)
        return drops, last

    def _do(self, operation: _Operation, memory: dict[int, torch.UntypedStorage]) -> None:
        for number in operation.uses - memory.keys():  # was dropped, and is overwritten now
            memory[number] = torch.empty(self.sizes[number], dtype=torch.uint8).untyped_storage()

        def real(value: Any) -> Any:
            return _tensor(value, memory[value.storage]) if isinstance(value, _View) else value

        with torch.no_grad():
            found = operation.function(
                *tree_map(real, operation.args), **tree_map(real, operation.kwargs)
            )
        made = [out for out in tree_leaves(found) if isinstance(out, Tensor)]
        used = {memory[number]._cdata for number in operation.uses}
        fresh = [out for out in made if out.untyped_storage()._cdata not in used]
        for number, out in zip(operation.results, fresh, strict=True):
            memory[number] = out.untyped_storage()


def _tensor(view: _View, storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=view.dtype).set_(storage, view.offset, view.size, view.stride)


def _on_meta(tensor: Tensor) -> Tensor:
    """The same without values."""
    empty = torch.empty_like(tensor, device=META)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def _check_attributes(module: nn.Module) -> None:
    """Refuse tensors on meta in plain attributes: nobody would give them their values."""
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(value)):
                name = f"{path}.{key}".lstrip(".")
                raise NotDeferred(f"{name} is a tensor and neither a parameter nor a buffer")
