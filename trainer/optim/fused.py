"""Fused optimizer kernels called directly; on a GPU over tensors cut so that it has work to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Elements of float32: pieces of a buffer start at multiples of 64 bytes, and the bits of a product
cannot depend on where they lie."""
TOGETHER, BLOCK = 36, 65536
"""torch's fused CUDA kernels give 65,536 elements to a block and take 36 tensors at once. The
MNIST network's parameters in one buffer keep 4 of 132 multiprocessors busy, for 60 µs a step."""


def padded(num_elements: int, dtype: torch.dtype = torch.float32) -> int:
    """That many elements or a few more, so that what follows them is aligned."""
    unit = ALIGNMENT * torch.float32.itemsize // dtype.itemsize
    return -(-num_elements // unit) * unit


def piece_size(num_elements: int) -> int | None:
    """Elements of each piece of that many; None if they are enough for a GPU as they are."""
    if num_elements > TOGETHER * BLOCK:
        return None
    return padded(-(-num_elements // TOGETHER))


def pieces(flat: Tensor) -> list[Tensor]:
    """A flat buffer as the fused kernels of its device take it best."""
    size = piece_size(flat.numel()) if flat.is_cuda else None
    return [flat] if size is None else list(torch.split(flat, size))


STATE: dict[type, tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),
    torch.optim.AdamW: ("exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
"""Elementwise optimizers with fused kernels, and the names of their state."""


def state_names(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    """Names of the tensors that it keeps for each parameter of a group."""
    if isinstance(optimizer, torch.optim.SGD) and not group["momentum"]:
        return ()
    return STATE[type(optimizer)]


class Kernel(ABC):
    """Takes the steps of an optimizer in its place, by a direct call of torch's fused kernel.

    Whoever steps an optimizer, a GradScaler too, may step this instead: it has the same parameter
    groups, and the state stays the optimizer's own.
    """

    _step_supports_amp_scaling = True  # a GradScaler then sets `grad_scale` and `found_inf`

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @abstractmethod
    def step(self) -> None:
        """One step of the optimizer."""

    def scaling(self) -> dict[str, Tensor | None]:
        """What a GradScaler leaves here while it asks for a step."""
        return {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}


def run_kernel(
    kernel: Kernel,
    group: dict[str, Any],
    columns: Sequence[list[Tensor]],
    steps: list[Tensor],
    counters: list[Tensor],
) -> None:
    """What an optimizer with `fused=True` does: count a step, and take it unless fp16 skips it.

    Args:
        kernel: Of Adam, AdamW or SGD.
        group: Its hyperparameters.
        columns: Values, gradients and each state, cut alike.
        steps: For Adam the number of each piece's step.
        counters: The same tensors, each once.
    """
    values, gradients, *states = columns
    optimizer, amp = kernel.optimizer, kernel.scaling()
    if isinstance(optimizer, torch.optim.SGD):
        # A momentum buffer of zeros gives the first step that torch takes without a buffer.
        torch._fused_sgd_(
            values,
            gradients,
            states[0] if states else [],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
            **amp,
        )
        return
    decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    mean, square = states
    torch._foreach_add_(counters, 1)
    fused(
        values,
        gradients,
        mean,
        square,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        **amp,
    )
    if amp["found_inf"] is not None:
        torch._foreach_sub_(counters, [amp["found_inf"]] * len(counters))


class DirectKernel(Kernel):
    """The bare call of an optimizer's fused kernel, with the arithmetic of its own step.

    torch.optim looks at every parameter several times before it calls the kernel, which small
    networks feel on a CPU. On a GPU this concerns steps that are being recorded, in which small
    networks are cut into pieces.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        self.known: list[_Column] | None = None
        optimizer.register_load_state_dict_post_hook(self._forget)

    def _forget(self, _: torch.optim.Optimizer) -> None:
        self.known = None

    def step(self) -> None:
        cuda = self.param_groups[0]["params"][0].is_cuda
        capturing = cuda and torch.cuda.is_current_stream_capturing()
        if (cuda and not capturing) or not self.take(in_pieces=capturing):
            self._step_of_torch()

    def _step_of_torch(self) -> None:
        """The optimizer's own step, which makes its state first of all."""
        scaling = {name: value for name, value in self.scaling().items() if value is not None}
        for name, value in scaling.items():
            setattr(self.optimizer, name, value)
        late = [group for group in self.param_groups if _has_late_momentum(self.optimizer, group)]
        for group in late:
            group["fused"] = False
        try:
            self.optimizer.step()
        finally:
            for name in scaling:
                delattr(self.optimizer, name)
            for group in late:
                group["fused"] = True

    @torch.no_grad()
    def take(self, *, in_pieces: bool) -> bool:
        """Take the step; False, and nothing done, if it is torch's to do."""
        if self.known is None:
            self.known = _columns(self.optimizer)
        if self.known is None:
            return False
        gradients = [[p.grad for p in column.values] for column in self.known]
        flat = [gradient for row in gradients for gradient in row]
        if any(gradient is None or gradient.is_sparse for gradient in flat):
            return False
        tables: list[list[Any]] = [
            [column.values, row, *column.states]
            for column, row in zip(self.known, gradients, strict=True)
        ]
        if in_pieces:
            size = piece_size(sum(gradient.numel() for gradient in flat if gradient is not None))
            tensors = [tensor for table in tables for row in table for tensor in row]
            if size is None or not all(tensor.is_contiguous() for tensor in tensors):
                return False
            tables = [
                [[torch.split(tensor.view(-1), size) for tensor in row] for row in table]
                for table in tables
            ]
        for column, table in zip(self.known, tables, strict=True):
            steps = column.steps
            if in_pieces:
                steps = [s for s, parts in zip(steps, table[0], strict=False) for _ in parts]
                table = [[piece for parts in row for piece in parts] for row in table]
            run_kernel(self, column.group, table, steps, column.steps)
        return True


@dataclass(frozen=True, slots=True)
class _Column:
    """A parameter group, and what the kernel takes of it but the gradients."""

    group: dict[str, Any]
    values: list[Tensor]
    states: list[list[Tensor]]
    steps: list[Tensor]


def _columns(optimizer: torch.optim.Optimizer) -> list[_Column] | None:
    """What the kernel of an optimizer takes; None if it has no state yet or wants more than that.

    Its own step makes the state, refuses gradients that it cannot use, and calls hooks.
    """
    if type(optimizer) not in STATE or _hooked(optimizer):
        return None
    found = []
    for group in optimizer.param_groups:
        members, names = list(group["params"]), state_names(optimizer, group)
        unusual = any(
            group.get(name) for name in ("amsgrad", "maximize", "differentiable", "dampening")
        )
        counted = not isinstance(optimizer, torch.optim.SGD)
        needed = (*names, "step") if counted else names
        states = [optimizer.state.get(p, {}) for p in members]
        complete = all(state.get(name) is not None for state in states for name in needed)
        alike = len({(p.dtype, p.device) for p in members}) == 1 and members[0].is_floating_point()
        if unusual or not group["fused"] or not complete or not alike:
            return None
        found.append(
            _Column(
                group,
                members,
                [[state[name] for state in states] for name in names],
                [state["step"] for state in states] if counted else [],
            )
        )
    return found


def _has_late_momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether some parameters of SGD get their first gradient later than others: its fused kernel
    takes a momentum of all or of none."""
    if not isinstance(optimizer, torch.optim.SGD) or not group["momentum"] or not group["fused"]:
        return False
    with_gradient = [p for p in group["params"] if p.grad is not None]
    begun = [optimizer.state.get(p, {}).get("momentum_buffer") is not None for p in with_gradient]
    return any(begun) and not all(begun)


def _hooked(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)
