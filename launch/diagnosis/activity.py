"""Watches what activation functions put out, as modules or as plain calls in a forward method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RECTIFIERS: tuple[Callable[..., Any], ...] = (
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6,
)  # fmt: skip
CLAMPS: tuple[Callable[..., Any], ...] = (
    torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_, torch.clamp_min, Tensor.clamp_min,
    F.hardtanh, F.threshold,
)  # fmt: skip
SIGMOIDS: tuple[Callable[..., Any], ...] = (
    torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid,
)  # fmt: skip
TANHS: tuple[Callable[..., Any], ...] = (
    torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh,
)  # fmt: skip
SATURATED = 0.02
"""Distance to the end of the range, as part of it, where the slope is below 8 % of its peak."""


@dataclass(slots=True)
class Activity:
    """What one activation has put out so far."""

    kind: str
    """relu, sigmoid or tanh."""
    ever_active: Tensor | None = None
    """relu: for each unit (channel or feature), whether it was ever above 0."""
    saturated: float | Tensor = 0.0
    """sigmoid, tanh: sum over calls of the part of outputs near the end of the range."""
    calls: int = 0

    @property
    def dead_fraction(self) -> float:
        """Part of the units that were never above 0."""
        return 1.0 - float(self.ever_active.float().mean()) if self.ever_active is not None else 0.0

    @property
    def saturated_fraction(self) -> float:
        return float(self.saturated) / max(self.calls, 1)


class ActivityWatch(TorchFunctionMode):
    """Records every rectifier, sigmoid and tanh that runs while it is entered.

    Entries are named by the module whose forward made the call, and numbered if it made several.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Activity] = {}
        self._last: tuple[str, Tensor] | None = None
        self._path: list[str] = []
        self._calls: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = _kind(func, args, kwargs or {})
        if kind is not None and isinstance(output, Tensor) and output.is_floating_point():
            self._record(kind, output.detach())
        return output

    def kind_of(self, output: Tensor) -> str | None:
        """The kind of activation that put out this very tensor last; None if none did."""
        if self._last is None or self._last[1].data_ptr() != output.data_ptr():
            return None
        return self._last[0]

    def _record(self, kind: str, output: Tensor) -> None:
        self._last = kind, output
        where = self._path[-1] if self._path else "model"
        self._calls[where] += 1
        number = self._calls[where]
        entry = self.found.setdefault(
            where if number == 1 else f"{where} (call {number})", Activity(kind)
        )
        entry.calls += 1
        if kind == "relu":
            active = _units(output > 0)
            known = entry.ever_active
            same = known is not None and known.shape == active.shape
            entry.ever_active = known | active if known is not None and same else active
        else:
            low = 0.0 if kind == "sigmoid" else -1.0
            margin = SATURATED * (1.0 - low)
            ends = (output < low + margin) | (output > 1.0 - margin)
            entry.saturated += ends.float().mean()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Around one forward pass of `model`."""
        self._calls.clear()
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name or "model")))
            handles.append(module.register_forward_hook(self._leaving))
        try:
            with self:
                yield
        finally:
            self._path.clear()
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self._path.append(name)

        return enter

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._path.pop()


def _kind(func: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    if func in RECTIFIERS:
        return "relu"
    if func in SIGMOIDS:
        return "sigmoid"
    if func in TANHS:
        return "tanh"
    if func in CLAMPS:
        names = ("min", "min_val", "threshold")
        low = next((kwargs[n] for n in names if n in kwargs), args[1] if len(args) > 1 else None)
        is_zero = isinstance(low, int | float) and low == 0
        return "relu" if is_zero else None
    return None


def _units(active: Tensor) -> Tensor:
    """`(B, C, ...)` -> `(C,)` for images and volumes, else the last dimension."""
    if active.ndim < 2:
        return active.any().reshape(1)
    unit = 1 if active.ndim >= 4 else active.ndim - 1
    return active.movedim(unit, -1).reshape(-1, active.shape[unit]).any(0)
