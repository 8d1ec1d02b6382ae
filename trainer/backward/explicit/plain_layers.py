"""Whether a network is plainly linear layers, and which: its passes can be written out then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, float32, nn
from torch.nn.modules import module as everywhere

from trainer.networks.dropout import LEVELS, Dropout, kept_scale
from trainer.networks.mlp import MLP

EVERYWHERE = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One linear layer and what follows it."""

    linear: nn.Linear
    relu: bool
    dropped: int
    """Activations out of 65,536 that dropout zeroes."""

    @property
    def scale(self) -> float:
        return kept_scale(self.dropped)


class Layer:
    """A linear layer's parameters and gradients as (in, out) matrices of flat buffers."""

    def __init__(self, shape: Shape, values: Iterator[Tensor], gradients: Iterator[Tensor]) -> None:
        self.backwards, self.bias = next(values), next(values)  # (out, in)
        self.weight = self.backwards.t()
        self.weight_gradient, self.bias_gradient = next(gradients).t(), next(gradients)
        self.dropped, self.scale = shape.dropped, shape.scale


def describe(module: nn.Module) -> list[Shape] | None:
    """The layers of a network that can be written out, or None if this one cannot.

    That takes float32 linear layers with bias, each but the last followed by ReLU and maybe
    dropout, nothing frozen, shared, hooked or patched, no part in eval mode, and no module but
    torch's own and MLP.
    """
    leaves = None if _hooked_everywhere() else _leaves(module)
    if leaves is None or not leaves or type(leaves[0]) not in (nn.Flatten, nn.Linear):
        return None
    shapes: list[Shape] = []
    for position, leaf in enumerate(leaves):
        before = type(leaves[position - 1]) if position else None
        if isinstance(leaf, nn.Flatten) and position == 0 and leaf.start_dim == 1:
            continue
        if isinstance(leaf, nn.Linear) and leaf.bias is not None:
            if shapes and not shapes[-1].relu:
                return None
            shapes.append(Shape(leaf, relu=False, dropped=0))
        elif isinstance(leaf, nn.ReLU) and before is nn.Linear:
            shapes[-1] = Shape(shapes[-1].linear, relu=True, dropped=0)
        elif isinstance(leaf, nn.Dropout) and before is nn.ReLU and leaf.p < 1:
            shapes[-1] = Shape(shapes[-1].linear, relu=True, dropped=round(leaf.p * LEVELS))
        else:
            return None
    parameters = [p for shape in shapes for p in shape.linear.parameters()]
    plain = all(
        type(p) is nn.Parameter and p.requires_grad and p.dtype is float32 and not _hooks(p)
        for p in parameters
    )
    if not plain or len(set(parameters)) < len(parameters) or shapes[-1].relu:
        return None
    return shapes


def _hooks(parameter: nn.Parameter) -> bool:
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _hooked_everywhere() -> bool:
    """Whether there are hooks on every module, or somebody has put another `forward` into a class
    of torch's."""
    known = (nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Sequential, Dropout, MLP)
    return any(vars(everywhere)[name] for name in EVERYWHERE) or any(
        kind.forward.__module__ != kind.__module__ for kind in known
    )


def _leaves(module: nn.Module) -> list[nn.Module] | None:
    """The modules in the order they are applied; None if that is not known or they are hooked."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._parameters.keys() - {"weight", "bias"}
        or "forward" in vars(module)  # patched on the instance, as LoRA often is
        or not module.training
    )
    if hooked:
        return None
    if type(module) is MLP:
        return _leaves(module.layers)
    if type(module) is not nn.Sequential:
        known = (nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, Dropout)
        return [module] if type(module) in known else None
    found: list[nn.Module] = []
    for child in module:
        leaves = _leaves(child)
        if leaves is None:
            return None
        found += leaves
    return found
