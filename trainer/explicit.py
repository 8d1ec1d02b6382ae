"""Forward and backward pass of linear layers, written out: no autograd, hardly an allocation.

For small networks autograd, memory management and the random numbers of dropout cost more than the
mathematics. Networks of linear layers with ReLU and dropout between them are simple enough to write
the chain rule down. The products and their order are autograd's; dropout differs in where its
random numbers come from: 16 random bits decide on an activation, so its probability is a multiple
of 2**-16, and activations are scaled by the exact inverse of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.datasets import Normalize
from trainer.flat import FlatParameters, untracked
from trainer.models import MLP

LEVELS = 1 << 16
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True, slots=True)
class _Shape:
    """One linear layer and what follows it."""

    linear: nn.Linear
    relu: bool
    dropped: int
    """Activations out of 65,536 that dropout zeroes."""

    @property
    def scale(self) -> float:
        return LEVELS / (LEVELS - self.dropped)


def describe(module: nn.Module) -> list[_Shape] | None:
    """The layers of a network that can be written out, or None if this one cannot.

    That takes float32 linear layers with bias, each but the last followed by ReLU and maybe
    dropout, nothing frozen, shared or hooked, and no module but torch's own and MLP.
    """
    leaves = _leaves(module)
    if leaves is None or not leaves or type(leaves[0]) not in (nn.Flatten, nn.Linear):
        return None
    shapes: list[_Shape] = []
    for position, leaf in enumerate(leaves):
        before = type(leaves[position - 1]) if position else None
        if isinstance(leaf, nn.Flatten) and position == 0 and leaf.start_dim == 1:
            continue
        if isinstance(leaf, nn.Linear) and leaf.bias is not None:
            if shapes and not shapes[-1].relu:
                return None
            shapes.append(_Shape(leaf, relu=False, dropped=0))
        elif isinstance(leaf, nn.ReLU) and before is nn.Linear:
            shapes[-1] = _Shape(shapes[-1].linear, relu=True, dropped=0)
        elif isinstance(leaf, nn.Dropout) and before is nn.ReLU and leaf.p < 1:
            shapes[-1] = _Shape(shapes[-1].linear, relu=True, dropped=round(leaf.p * LEVELS))
        else:
            return None
    parameters = [p for shape in shapes for p in shape.linear.parameters()]
    plain = all(p.requires_grad and p.dtype is torch.float32 for p in parameters)
    if not plain or len(set(parameters)) < len(parameters) or shapes[-1].relu:
        return None
    return shapes


def _leaves(module: nn.Module) -> list[nn.Module] | None:
    """The modules in the order they are applied; None if that is not known or they are hooked."""
    hooked = (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._parameters.keys() - {"weight", "bias"}
    )
    if hooked:
        return None
    if type(module) is MLP:
        return _leaves(module.layers)
    if type(module) is not nn.Sequential:
        known = (nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout)
        return [module] if type(module) in known else None
    found: list[nn.Module] = []
    for child in module:
        leaves = _leaves(child)
        if leaves is None:
            return None
        found += leaves
    return found


class _Layer:
    """A linear layer's parameters and gradients as (in, out) matrices of the flat buffers."""

    def __init__(self, shape: _Shape) -> None:
        weight, bias = shape.linear.weight, shape.linear.bias
        assert weight.grad is not None
        assert bias.grad is not None
        self.weight, self.bias = weight.data.t(), bias.data
        self.backwards = weight.data  # (out, in)
        self.weight_gradient, self.bias_gradient = weight.grad.t(), bias.grad
        self.dropped, self.scale = shape.dropped, shape.scale


class _Workspace:
    """Every intermediate tensor for one batch size."""

    def __init__(self, size: int, input_shape: tuple[int, ...], layers: list[_Layer]) -> None:
        new = layers[0].weight.new_empty
        self.inputs = new(size, layers[0].weight.shape[0])
        self.unflattened = self.inputs.view(size, *input_shape)
        self.outputs = [new(size, layer.weight.shape[1]) for layer in layers]
        self.gradients = [torch.empty_like(output) for output in self.outputs]
        entering = [self.inputs, *self.outputs[:-1]]
        self.transposed = [tensor.t() for tensor in entering]
        # One random 16-bit number for every activation that may be dropped.
        outputs = [
            o if layer.dropped else o[:0] for o, layer in zip(self.outputs, layers, strict=True)
        ]
        counts = [output.numel() for output in outputs]
        self.words = new(math.ceil(sum(counts) / 4), dtype=torch.int64)
        draws = torch.split(self.words.view(torch.int16)[: sum(counts)], counts)
        keep = torch.split(new(sum(counts)), counts)
        self.draws = [part.view_as(o) for part, o in zip(draws, outputs, strict=True)]
        self.keep = [part.view_as(o) for part, o in zip(keep, outputs, strict=True)]
        self.minus_one = new(size, 1).fill_(-1.0)


class ExplicitPasses:
    """The passes of a network that `describe` accepts, in float32.

    A dropped activation is exactly zero, so the backward pass needs no mask: it goes where the
    activation is positive. The scale of dropout is a factor of the products around it.
    """

    def __init__(
        self,
        shapes: list[_Shape],
        flat: FlatParameters,
        *,
        normalize: Normalize,
        label_smoothing: float,
    ) -> None:
        self.flat = flat
        self.size = flat.gradients.numel()
        self.layers = [_Layer(shape) for shape in shapes]
        self.normalize = normalize
        self.num_classes = shapes[-1].linear.out_features
        self.label_smoothing = label_smoothing
        self.workspaces: dict[int, _Workspace] = {}
        self.fresh = True
        self.untracked = untracked(flat.gradients.device)

    def clear(self) -> None:
        self.fresh = True

    def take(self, out: Tensor) -> None:
        if self.fresh:
            self.flat.gradients.zero_()
        self.fresh = True
        out.copy_(self.flat.gradients)

    def put(self, flat: Tensor) -> None:
        self.flat.gradients.copy_(flat)

    def __call__(self, inputs: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
        size = len(targets)
        with self.untracked:
            work = self.workspaces.get(size)
            if work is None:
                shape = tuple(inputs.shape[1:])
                work = self.workspaces[size] = _Workspace(size, shape, self.layers)
            self.normalize(inputs, out=work.unflattened)
            self._forward(work)
            loss, correct = self._loss(work, targets, share)
            self._backward(work)
        self.fresh = False
        return loss, correct

    def _forward(self, work: _Workspace) -> None:
        if len(work.words):
            work.words.random_(-(1 << 63), None)
        entering, scale = work.inputs, 1.0
        for layer, output, draws, keep in zip(
            self.layers, work.outputs, work.draws, work.keep, strict=True
        ):
            torch.addmm(layer.bias, entering, layer.weight, alpha=scale, out=output)
            if output is work.outputs[-1]:
                return
            output.relu_()
            if layer.dropped:
                torch.ge(draws, layer.dropped - LEVELS // 2, out=keep)
                output.mul_(keep)
            entering, scale = output, layer.scale

    def _loss(self, work: _Workspace, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and its gradient `share * (softmax - target)` by the logits."""
        logits, gradient, smoothing = work.outputs[-1], work.gradients[-1], self.label_smoothing
        column = targets.unsqueeze(1)
        logp = torch.log_softmax(logits, 1)
        loss = F.nll_loss(logp, targets, reduction="sum")
        correct = (logits.argmax(1) == targets).sum()
        torch.exp(logp, out=gradient)
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing / self.num_classes * logp.sum()
            gradient.sub_(smoothing / self.num_classes)
            gradient.scatter_add_(1, column, work.minus_one * (1 - smoothing))
        else:
            gradient.scatter_add_(1, column, work.minus_one)
        gradient.mul_(share)
        return loss, correct

    def _backward(self, work: _Workspace) -> None:
        beta = 0.0 if self.fresh else 1.0
        for index in range(len(self.layers) - 1, -1, -1):
            layer, gradient = self.layers[index], work.gradients[index]
            scale = self.layers[index - 1].scale if index else 1.0
            out = layer.weight_gradient
            torch.addmm(out, work.transposed[index], gradient, beta=beta, alpha=scale, out=out)
            if self.fresh:
                torch.sum(gradient, 0, out=layer.bias_gradient)
            else:
                layer.bias_gradient.add_(gradient.sum(0))
            if index:
                below, activation = work.gradients[index - 1], work.outputs[index - 1]
                torch.addmm(below, gradient, layer.backwards, beta=0.0, alpha=scale, out=below)
                _threshold_backward(below, activation, 0.0, grad_input=below)
