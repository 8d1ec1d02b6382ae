"""Fused optimizer kernels over tensors cut so that a GPU has enough to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Elements: pieces start at multiples of 64 bytes; the bits of a product may depend on that."""
TOGETHER, BLOCK = 36, 65536
"""torch's fused CUDA kernels give 65,536 elements to a block and take 36 tensors at once. The
MNIST network's parameters in one buffer keep 4 of 132 multiprocessors busy, for 60 µs a step."""


def piece_size(num_elements: int) -> int | None:
    """Elements of each piece of that many; None if they are enough for a GPU as they are."""
    if num_elements > TOGETHER * BLOCK:
        return None
    return -(-num_elements // (TOGETHER * ALIGNMENT)) * ALIGNMENT


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


def run_kernel(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    columns: Sequence[list[Tensor]],
    steps: list[Tensor],
    **amp: Tensor | None,
) -> None:
    """The kernel that an optimizer with `fused=True` calls.

    Args:
        optimizer: Adam, AdamW or SGD.
        group: Its hyperparameters.
        columns: Values, gradients and each state, cut alike.
        steps: For Adam the number of each piece's step, counted up already.
        amp: `grad_scale` and `found_inf` of a GradScaler.
    """
    values, gradients, *states = columns
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
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
    mean, square = states
    kernel(
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


class PieceStep:
    """`optimizer.step` of small networks on a GPU, while it is being recorded.

    Cutting tensors up takes the host longer than it saves the device; a recording is made once.
    The arithmetic is that of the optimizer's own step, element by element.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.whole = optimizer.step

    def __call__(self) -> None:
        if not torch.cuda.is_current_stream_capturing() or not self.cut():
            self.whole()

    @torch.no_grad()
    def cut(self) -> bool:
        """Take the step in pieces; False, and nothing done, if that is not possible."""
        optimizer = self.optimizer
        groups = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in optimizer.param_groups
        ]
        size = piece_size(sum(p.numel() for _, members in groups for p in members))
        unusual = any(
            group.get(name)
            for group, _ in groups
            for name in ("amsgrad", "maximize", "differentiable", "dampening")
        )
        if size is None or unusual:
            return False
        prepared = []
        for group, members in groups:
            names = state_names(optimizer, group)
            if any(name not in optimizer.state[p] for name in names for p in members):
                return False
            columns = [
                list(members),
                [p.grad for p in members],
                *([optimizer.state[p][name] for p in members] for name in names),
            ]
            if not all(tensor.is_contiguous() for column in columns for tensor in column):
                return False
            prepared.append((group, members, columns))
        amp = {name: getattr(optimizer, name, None) for name in ("grad_scale", "found_inf")}
        for group, members, columns in prepared:
            rows = [[torch.split(t.view(-1), size) for t in column] for column in columns]
            steps = [optimizer.state[p]["step"] for p in members if "step" in optimizer.state[p]]
            if steps:
                torch._foreach_add_(steps, 1)
            run_kernel(
                optimizer,
                group,
                [[piece for parts in row for piece in parts] for row in rows],
                [s for s, parts in zip(steps, rows[0], strict=False) for _ in parts],
                **amp,
            )
            if steps and amp["found_inf"] is not None:
                torch._foreach_sub_(steps, [amp["found_inf"]] * len(steps))
        return True
