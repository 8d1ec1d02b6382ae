"""Forward and backward pass of linear layers, written out: no autograd, hardly an allocation.

For small networks autograd, memory management and the random numbers of dropout cost more than the
mathematics. Networks of linear layers with ReLU and dropout between them are simple enough to write
the chain rule down. The products and their order are autograd's; dropout differs in where its
random numbers come from: 16 random bits decide on an activation, so its probability is a multiple
of 2**-16, and activations are scaled by the exact inverse of that.

In bf16 and fp16 the passes compute with rounded copies of the weights, as autocast does: the loss,
the sum of gradients and the weights stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, float32

from data.datasets import Normalize
from trainer.backward.explicit.onednn import LARGE, multiply, prefers_onednn
from trainer.backward.explicit.plain_layers import Layer, Shape
from trainer.backward.explicit.side_streams import Branches
from trainer.backward.explicit.workspace import Call, Prepared, Views, Workspace
from trainer.networks.dropout import least_kept
from trainer.optim.flat import FlatParameters, entered, untracked
from trainer.ranks.precision import Precision, loss_scale

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


def _find_head(layers: list[Layer], device: torch.device) -> Callable[..., None] | None:
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


class ExplicitPasses:
    """The passes of a network that `describe` accepts.

    A dropped activation is exactly zero, so the backward pass needs no mask: it goes where the
    activation is positive. The scale of dropout is a factor of the products around it.
    """

    def __init__(
        self,
        shapes: list[Shape],
        flat: FlatParameters,
        *,
        normalize: Normalize,
        label_smoothing: float,
        precision: Precision,
    ) -> None:
        self.flat = flat
        self.size = flat.gradients.numel()
        self.rounds = precision.dtype is not None
        self.values, self.gradients = flat.values, flat.gradients
        """What the passes read and write: the flat buffers, or rounded copies."""
        if self.rounds:
            self.values, self.gradients = (
                torch.zeros_like(tensor, dtype=precision.dtype)
                for tensor in (flat.values, flat.gradients)
            )
        self.loss_scale = None
        if precision.scaler.is_enabled():
            precision.scaler.scale(flat.values[:0])  # the scale is made when one is first needed
            self.loss_scale = loss_scale(precision.scaler)
        values, gradients = iter(flat.views(self.values)), iter(flat.views(self.gradients))
        self.layers = [Layer(shape, values, gradients) for shape in shapes]
        self.normalize = normalize
        self.num_classes = shapes[-1].linear.out_features
        self.label_smoothing = label_smoothing
        self.workspaces: dict[tuple[int, int], Workspace] = {}
        self.prepared: Prepared | None = None
        self.fresh = True
        self.untracked = untracked(flat.gradients.device)
        self.branches = Branches(flat.gradients.device, len(self.layers))
        self.drawing = Branches(flat.gradients.device, 1)
        self.head = _find_head(self.layers, flat.gradients.device)
        on_cpu = flat.gradients.device.type == "cpu"
        # For products in shorter types torch asks oneDNN by itself.
        self.onednn = on_cpu and not self.rounds and prefers_onednn()

    @property
    def num_bytes(self) -> int:
        """Of everything that is kept from step to step, but the flat buffers."""
        own = (self.values, self.gradients) if self.rounds else ()
        works = (work.num_bytes for work in self.workspaces.values())
        return sum(works) + sum(tensor.nbytes for tensor in own)

    def clear(self) -> None:
        self.fresh = True

    def take(self, out: Tensor) -> None:
        if self.fresh:
            self.flat.gradients.zero_()
        self.fresh = True
        out.copy_(self.flat.gradients)

    def put(self, flat: Tensor) -> None:
        self.flat.gradients.copy_(flat)

    def prepare(self, inputs: Tensor, targets: Tensor, loss_weight: float, count: int) -> Prepared:
        """Make `count` batches of equal size ready, one for each `advance` that follows.

        What does not depend on the weights is done for all of them at once. Random numbers are
        drawn batch by batch: how many are made ready together does not change them.
        """
        assert self.prepared is None
        size, smoothing = len(targets) // count, self.label_smoothing
        with entered(self.untracked):
            work = self.workspaces.get((count, size))
            if work is None:
                widths = [layer.weight.shape[1] for layer in self.layers]
                dropout = [layer.dropped > 0 for layer in self.layers]
                shape, device = inputs.shape[1:], self.values.device
                work = Workspace(count, size, shape, widths, dropout, self.values.dtype, device)
                self.workspaces[count, size] = work
            self.normalize(inputs.view(work.normalized.shape), out=work.normalized)
            if self.rounds:
                work.inputs.copy_(work.normalized.view(work.inputs.shape))
            self._draw(work)
            others = smoothing / self.num_classes
            work.goals.fill_(-loss_weight * others)
            self.prepared = prepared = Prepared(work, targets)
            hot = -loss_weight * (1 - smoothing + others)
            work.goals.scatter_(2, prepared.targets, hot)
        return prepared

    def advance(self) -> None:
        """Forward and backward, on the next batch that has been made ready."""
        prepared = self.prepared
        assert prepared is not None
        with entered(self.untracked):
            batch = prepared.work.batches[prepared.used]
            prepared.used += 1
            for call in self._calls(prepared.work, batch):
                call()
            if prepared.used_up:
                prepared.measure(self.label_smoothing)
                self.prepared = None
        self.fresh = False

    def __call__(
        self, inputs: Tensor, targets: Tensor, loss_weight: float
    ) -> tuple[Tensor, Tensor]:
        prepared = self.prepare(inputs, targets, loss_weight, 1)
        self.advance()
        return prepared.losses[0], prepared.hits[0]

    def _calls(self, work: Workspace, batch: Views) -> Iterable[Call]:
        """The operations on a batch, in order. On a CPU they are written down once."""
        if self.branches.streams:
            self.drawing.wait(batch.drawn)
            return self._passes(work, batch)
        if self.fresh not in batch.calls:
            batch.calls[self.fresh] = list(self._passes(work, batch))
        return batch.calls[self.fresh]

    def _draw(self, work: Workspace) -> None:
        """Masks for all batches, on a GPU beside the steps that do not need them yet."""
        if not self.drawing.streams:
            for words in work.words:
                words.random_(-(1 << 63), None)
            for layer, draws, keep in zip(self.layers, work.draws, work.keep, strict=True):
                if layer.dropped:
                    torch.ge(draws, least_kept(layer.dropped), out=keep)
            return
        for index, words in enumerate(work.words):
            with self.drawing.beside(0):
                words.random_(-(1 << 63), None)
                for layer, draws, keep in zip(self.layers, work.draws, work.keep, strict=True):
                    if layer.dropped:
                        torch.ge(draws[index], least_kept(layer.dropped), out=keep[index])
                work.batches[index].drawn = self.drawing.mark()

    def _passes(self, work: Workspace, batch: Views) -> Iterator[Call]:
        yield from _convert(self.flat.values, self.values)
        yield from self._forward(work, batch)
        yield from self._turn(work, batch)
        yield from self._backward(work, batch, fresh=self.fresh or self.rounds)
        if self.rounds:
            total = self.flat.gradients
            yield partial(total.copy_ if self.fresh else total.add_, self.gradients)

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
            yield partial(batch.goal.mul_, self.loss_scale)
        last, gradients = self.layers[-1], work.gradients
        scale = self.layers[-2].scale if work.activations else 1.0
        entering = work.activations[-1] if work.activations else batch.inputs
        if self.head is not None:
            yield partial(
                self.head,
                entering,
                last.weight,
                last.bias,
                batch.goal,
                scale=scale,
                logits=batch.logits,
                logp=batch.logp,
                gradient=gradients[-1],
                below=gradients[-2],
            )
            return
        yield partial(torch.addmm, last.bias, entering, last.weight, alpha=scale, out=batch.outputs)
        yield from _convert(batch.outputs, batch.logits)
        yield partial(torch.log_softmax, batch.logits, 1, out=batch.logp)
        yield partial(
            torch._log_softmax_backward_data, batch.goal, batch.logp, 1, float32, out=work.slope
        )
        yield from _convert(work.slope, gradients[-1])
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
                    yield self._weigh(layer, entering, gradient, scale, fresh=fresh)
            if index == 0:
                yield self._weigh(layer, batch.transposed, gradient, scale, fresh=fresh)
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

    def _weigh(
        self, layer: Layer, entering: Tensor, gradient: Tensor, scale: float, *, fresh: bool
    ) -> Call:
        """The gradient of a layer's weights."""
        out, beta = layer.weight_gradient, 0.0 if fresh else 1.0
        if scale == 1.0 and fresh and self.onednn and out.numel() * len(gradient) >= LARGE:
            return partial(_multiply_to, gradient.t(), entering, out.t())
        return partial(torch.addmm, out, entering, gradient, beta=beta, alpha=scale, out=out)


def _convert(source: Tensor, target: Tensor) -> Iterator[Call]:
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
