"""All parameters of a model in one flat buffer, their gradients in another; one kernel steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainer.optim.fused import Kernel, padded, pieces, run_kernel, state_names

NOTHING: AbstractContextManager[Any] = nullcontext()


def untracked(device: torch.device) -> torch.inference_mode | torch.no_grad:
    """A context without autograd, to be entered again and again.

    On CPUs inference mode takes 4 % off a step of the MNIST network; graphs of CUDA kernels have
    nothing to gain.
    """
    return torch.inference_mode() if device.type == "cpu" else torch.no_grad()


def entered(own: torch.inference_mode | torch.no_grad) -> AbstractContextManager[Any]:
    """`own`, or nothing within inference mode, which costs as much as an operator to enter."""
    return NOTHING if torch.is_inference_mode_enabled() else own


class FlatParameters:
    """Moves float32 parameters into a flat buffer; they and their `.grad` become views of it.

    Matrices are stored transposed, (in, out) for a linear layer: its weight gradient is then the
    product `inputs.T @ gradient`, which BLAS libraries do faster than `gradient.T @ inputs`. Their
    shape and their state dict stay what they were.

    Args:
        parameters: In the order in which they are to lie.
        upright: Whether a parameter is stored as it is instead.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        upright: Callable[[nn.Parameter], bool] = lambda _: False,
    ) -> None:
        self.parameters = list(parameters)
        self.upright = [p.dim() != 2 or upright(p) for p in self.parameters]
        sizes = [padded(parameter.numel()) for parameter in self.parameters]
        self.starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self.values = torch.zeros(sum(sizes), device=self.parameters[0].device)
        self.gradients = torch.zeros_like(self.values)
        slots = zip(self.views(self.values), self.views(self.gradients), strict=True)
        for parameter, (value, gradient) in zip(self.parameters, slots, strict=True):
            value.copy_(parameter.data)
            parameter.data = value
            parameter.grad = gradient
        self.as_one = nn.Parameter(self.values)
        """Stands for all of them: norms and clipping take one kernel instead of one for each."""
        self.as_one.grad = self.gradients

    def views(self, flat: Tensor) -> list[Tensor]:
        """Slots of a flat tensor, each in the shape of its parameter."""
        found = []
        placed = zip(self.parameters, self.starts, self.upright, strict=True)
        for parameter, start, upright in placed:
            slot = flat[start : start + parameter.numel()]
            if upright:
                found.append(slot.view_as(parameter))
            else:
                rows, columns = parameter.shape
                found.append(slot.view(columns, rows).t())
        return found


class FlatKernel(Kernel):
    """One fused kernel over all parameters of an optimizer instead of one for each.

    The kernels are those that torch.optim calls with `fused=True`. The state dict does not show it:
    its tensors are views, one per parameter as ever. On the MNIST network this takes a third of the
    time of the optimizer's own fused step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, flat: FlatParameters) -> None:
        super().__init__(optimizer)
        self.flat = flat
        self.group: dict[str, Any] = optimizer.param_groups[0]
        self.names = state_names(optimizer, self.group)
        self.adopt()
        optimizer.register_load_state_dict_post_hook(lambda _: self.adopt())

    def adopt(self) -> None:
        """Gather the state of the optimizer, new or just loaded, into flat buffers."""
        self.group = self.optimizer.param_groups[0]
        state = self.optimizer.state
        steps = [state[p]["step"] for p in self.flat.parameters if "step" in state.get(p, {})]
        device = self.flat.values.device
        self.count = torch.tensor(float(steps[0]) if steps else 0.0, device=device)
        self.untracked = untracked(device)
        self.buffers = []
        for name in self.names:
            buffer = torch.zeros_like(self.flat.values)
            slots = zip(self.flat.parameters, self.flat.views(buffer), strict=True)
            for parameter, slot in slots:
                if state[parameter].get(name) is not None:
                    slot.copy_(state[parameter][name])
                state[parameter][name] = slot
            self.buffers.append(buffer)
        tensors = (self.flat.values, self.flat.gradients, *self.buffers)
        self.pieces = [pieces(tensor) for tensor in tensors]
        self.steps = [self.count] * len(self.pieces[0])
        if not isinstance(self.optimizer, torch.optim.SGD):
            for parameter in self.flat.parameters:
                state[parameter]["step"] = self.count

    def step(self) -> None:
        with entered(self.untracked):
            run_kernel(self, self.group, self.pieces, self.steps, [self.count])
