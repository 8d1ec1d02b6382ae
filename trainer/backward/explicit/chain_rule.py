"""The chain rule of linear layers with ReLU and dropout, written down as a list of calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, float32

from trainer.backward.explicit.onednn import LARGE, multiply
from trainer.backward.explicit.plain_layers import Layer
from trainer.backward.explicit.side_streams import Branches
from trainer.backward.explicit.workspace import Call, Views, Workspace

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


def find_head(layers: list[Layer], device: torch.device) -> Callable[..., None] | None:
    """The kernel for the last layer, where there is one."""
    if device.type != "cuda" or len(layers) < 2:
        return None
    try:
        from trainer.backward.explicit.fused_head import (  # triton comes with torch for GPUs
            head,
            takes,
        )
    except ImportError:
        return None
    return head if takes(*layers[-1].weight.shape) else None


class ChainRule:
    """The operations of the forward and the backward pass over one batch of a workspace.

    A dropped activation is exactly zero, so the backward pass needs no mask: it goes where the
    activation is positive. The scale of dropout is a factor of the products around it.

    Args:
        layers: From the input to the logits.
        branches: Side streams for what nothing waits for, one for each layer.
        head: The kernel for the last layer, where there is one.
        onednn: Whether oneDNN computes the large products.
        loss_scale: Factor of the loss under fp16, on the device.
        finish: For a layer, what is done as soon as the gradients of it and of all above it are
            there, beside what follows.
    """

    def __init__(
        self,
        layers: list[Layer],
        branches: Branches,
        *,
        head: Callable[..., None] | None,
        onednn: bool,
        loss_scale: Tensor | None,
        finish: Callable[[int], Iterable[Call]],
    ) -> None:
        self.layers = layers
        self.branches = branches
        self.head = head
        self.onednn = onednn
        self.loss_scale = loss_scale
        self.finish = finish

    def calls(self, work: Workspace, batch: Views, *, fresh: bool) -> Iterator[Call]:
        """Forward and backward; the gradient is a new sum if `fresh`, else it is added to."""
        yield from self._forward(work, batch)
        yield from self._turn(work, batch)
        yield from self._backward(work, batch, fresh=fresh)

    def _forward(self, work: Workspace, batch: Views) -> Iterator[Call]:
        entering, scale = batch.inputs, 1.0
        for layer, keep, output in zip(self.layers, batch.keep, work.activations, strict=False):
            mask = keep if layer.dropped else None
            if scale == 1.0 and self.onednn and output.numel() * entering.shape[1] >= LARGE:
                yield partial(_rectify, entering, layer.backwards, layer.bias, mask, output)
            else:
                yield partial(
                    torch._addmm_activation,
                    layer.bias,
                    entering,
                    layer.weight,
                    alpha=scale,
                    out=output,
                )
                if mask is not None:
                    yield partial(output.mul_, mask)
            entering, scale = output, layer.scale

    def _turn(self, work: Workspace, batch: Views) -> Iterator[Call]:
        """The last layer, and the gradients by its outputs and by what the layer below computes."""
        if self.loss_scale is not None:
            yield partial(batch.logp_gradient.mul_, self.loss_scale)
        last, gradients = self.layers[-1], work.gradients
        scale = self.layers[-2].scale if work.activations else 1.0
        entering = work.activations[-1] if work.activations else batch.inputs
        if self.head is not None:
            yield partial(
                self.head,
                entering,
                last.weight,
                last.bias,
                batch.logp_gradient,
                scale=scale,
                logits=batch.logits,
                logp=batch.logp,
                gradient=gradients[-1],
                below=gradients[-2],
            )
            return
        yield partial(torch.addmm, last.bias, entering, last.weight, alpha=scale, out=batch.outputs)
        yield from convert(batch.outputs, batch.logits)
        yield partial(torch.log_softmax, batch.logits, 1, out=batch.logp)
        yield partial(
            torch._log_softmax_backward_data,
            batch.logp_gradient,
            batch.logp,
            1,
            float32,
            out=work.slope,
        )
        yield from convert(work.slope, gradients[-1])
        yield from self._descend(work, len(self.layers) - 1)

    def _backward(self, work: Workspace, batch: Views, *, fresh: bool) -> Iterator[Call]:
        """From the gradient by the logits to those of all parameters, a new sum or added to it."""
        for index in range(len(self.layers) - 1, -1, -1):
            layer, gradient = self.layers[index], work.gradients[index]
            scale = self.layers[index - 1].scale if index else 1.0
            with self.branches.beside(index):
                if fresh:
                    yield partial(torch.sum, gradient, 0, out=layer.bias_gradient)
                else:
                    yield partial(_add_sum, gradient, layer.bias_gradient)
                if index:
                    entering = work.activations[index - 1].t()
                    yield self.weigh(layer, entering, gradient, scale, fresh=fresh)
            finishing = list(self.finish(index))
            if finishing:
                with self.branches.behind(index):
                    yield from finishing
            if index == 0:
                yield self.weigh(layer, batch.transposed, gradient, scale, fresh=fresh)
            elif index < len(self.layers) - 1:
                yield from self._descend(work, index)
        yield self.branches.join

    def _descend(self, work: Workspace, index: int) -> Iterator[Call]:
        """From the gradient by the outputs of a layer to that by the outputs of the one below."""
        if index:
            below, activation = work.gradients[index - 1], work.activations[index - 1]
            layer, scale = self.layers[index], self.layers[index - 1].scale
            above = work.gradients[index]
            yield partial(
                torch.addmm, below, above, layer.backwards, beta=0.0, alpha=scale, out=below
            )
            yield partial(_threshold_backward, below, activation, 0.0, grad_input=below)

    def weigh(
        self, layer: Layer, entering: Tensor, gradient: Tensor, scale: float, *, fresh: bool
    ) -> Call:
        """The gradient of a layer's weights."""
        out, beta = layer.weight_gradient, 0.0 if fresh else 1.0
        if scale == 1.0 and fresh and self.onednn and out.numel() * len(gradient) >= LARGE:
            return partial(_multiply_to, gradient.t(), entering, out.t())
        return partial(torch.addmm, out, entering, gradient, beta=beta, alpha=scale, out=out)


def convert(source: Tensor, target: Tensor) -> Iterator[Call]:
    """A copy in another type, where there is one."""
    if target is not source:
        yield partial(target.copy_, source)


def _rectify(
    entering: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None, out: Tensor
) -> None:
    """`relu(entering @ weight.T + bias) * mask`; oneDNN's products come in memory of their own."""
    if mask is None:
        out.copy_(multiply(entering, weight, bias, relu=True))
    else:
        torch.mul(multiply(entering, weight, bias, relu=True), mask, out=out)


def _multiply_to(left: Tensor, right: Tensor, out: Tensor) -> None:
    out.copy_(multiply(left, right))


def _add_sum(gradient: Tensor, out: Tensor) -> None:
    out.add_(gradient.sum(0))
