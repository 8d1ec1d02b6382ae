"""The network of the peers with both passes written out: tensors allocated once, no autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.common import DROPOUT, SIZES
from data.catalogue.catalog import MNIST
from trainer.backward.explicit.onednn import multiply, prefers_onednn

DROPPED = round(DROPOUT * 65536)
KEPT_SCALE = 65536 / (65536 - DROPPED)
FACTOR, OFFSET = 1 / (255 * MNIST.std[0]), -MNIST.mean[0] / MNIST.std[0]
SHAPES = [
    shape
    for entering, leaving in itertools.pairwise(SIZES)
    for shape in ((entering, leaving), (leaving,))
]
"""Weights as (in, out), and biases, in the order of the layers."""
_relu_backward = torch.ops.aten.threshold_backward.grad_input


class Network:
    """Parameters and gradients in one flat buffer each, and the passes over them."""

    def __init__(self, device: torch.device) -> None:
        sizes = [torch.Size(shape).numel() for shape in SHAPES]
        self.values = torch.zeros(sum(sizes), device=device)
        self.gradients = torch.zeros_like(self.values)
        self.parameters, self.slots = (
            [part.view(shape) for part, shape in zip(flat.split(sizes), SHAPES, strict=True)]
            for flat in (self.values, self.gradients)
        )
        self.onednn = device.type == "cpu" and prefers_onednn()
        if self.onednn:  # which gives the gradient of the first layer as (out, in)
            for parts in (self.parameters, self.slots):
                parts[0] = parts[0].view(SIZES[1], SIZES[0]).t()
        self.work: dict[tuple[int, int], list[Tensor]] = {}

    def workspace(self, count: int, size: int) -> list[Tensor]:
        """What `count` batches of that size need: inputs, random words, masks, and so on."""
        if (count, size) not in self.work:
            new = self.values.new_empty
            widths = SIZES[1:-1]
            self.work[count, size] = [
                new(count, size, SIZES[0]),
                new(count, size * sum(widths) // 4, dtype=torch.int64),
                new(count, size * sum(widths)),
                *(new(count, size, SIZES[-1]) for _ in range(3)),
                *(new(size, width) for width in (*widths, *SIZES[1:])),
            ]
        return self.work[count, size]

    def steps(
        self, pixels: Tensor, labels: Tensor, count: int, update: Callable[[], None]
    ) -> tuple[list[Tensor], Tensor]:
        """Steps on `count` batches; returns the summed loss and the hits of each.

        What does not depend on the weights is done for all of them at once.
        """
        size = len(labels) // count
        inputs, words, masks, logits, logp, goals, *rest = self.workspace(count, size)
        a1, a2, g1, g2, g3 = rest
        w1, b1, w2, b2, w3, b3 = self.parameters
        dw1, db1, dw2, db2, dw3, db3 = self.slots
        inputs.view(-1, SIZES[0]).copy_(pixels).mul_(FACTOR).add_(OFFSET)
        words.random_(-(1 << 63), None)
        torch.ge(words.view(torch.int16), DROPPED - 32768, out=masks)
        goals.zero_().view(-1, SIZES[-1]).scatter_(1, labels[:, None], -1 / size)
        losses = []
        for index, targets in enumerate(labels.split(size)):
            x, mask = inputs[index], masks[index]
            if self.onednn:
                z1 = multiply(x, w1.t(), b1, relu=True)
            else:
                z1 = torch._addmm_activation(b1, x, w1, out=a1)
            torch.mul(z1, mask[: a1.numel()].view_as(a1), out=a1)
            torch._addmm_activation(b2, a1, w2, alpha=KEPT_SCALE, out=a2)
            a2.mul_(mask[a1.numel() :].view_as(a2))
            torch.addmm(b3, a2, w3, alpha=KEPT_SCALE, out=logits[index])
            torch.log_softmax(logits[index], 1, out=logp[index])
            losses.append(F.nll_loss(logp[index], targets, reduction="sum"))
            torch._log_softmax_backward_data(goals[index], logp[index], 1, torch.float32, out=g3)

            # A dropped activation is zero, so the gradient of ReLU is also that of dropout.
            torch.addmm(dw3, a2.t(), g3, beta=0, alpha=KEPT_SCALE, out=dw3)
            torch.sum(g3, 0, out=db3)
            torch.addmm(g2, g3, w3.t(), beta=0, alpha=KEPT_SCALE, out=g2)
            _relu_backward(g2, a2, 0.0, grad_input=g2)
            torch.addmm(dw2, a1.t(), g2, beta=0, alpha=KEPT_SCALE, out=dw2)
            torch.sum(g2, 0, out=db2)
            torch.addmm(g1, g2, w2.t(), beta=0, alpha=KEPT_SCALE, out=g1)
            _relu_backward(g1, a1, 0.0, grad_input=g1)
            if self.onednn:
                dw1.t().copy_(multiply(g1.t(), x.t()))
            else:
                torch.addmm(dw1, x.t(), g1, beta=0, out=dw1)
            torch.sum(g1, 0, out=db1)
            update()
        hits = (logits.argmax(2) == labels.view(count, size)).sum(1)
        return losses, hits
