"""The network of the peers with both passes written out: tensors allocated once, no autograd."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.common import DROPOUT, SIZES
from data.catalog import MNIST

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
        self.work: dict[int, list[list[Tensor]]] = {}

    def workspace(self, size: int) -> list[list[Tensor]]:
        """Activations (the inputs first), their gradients, random bits and masks."""
        if size not in self.work:
            activations = [self.values.new_empty(size, width) for width in SIZES]
            widths = [size * width for width in SIZES[1:-1]]
            words = self.values.new_empty(sum(widths) // 4, dtype=torch.int64)
            bits, masks = (
                [part.view(size, -1) for part in flat.split(widths)]
                for flat in (words.view(torch.int16), self.values.new_empty(sum(widths)))
            )
            gradients = [torch.empty_like(tensor) for tensor in activations]
            self.work[size] = [activations, gradients, [words, *bits], masks]
        return self.work[size]

    def step(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss of a batch; returns its summed loss and hits."""
        a, g, (words, *bits), masks = self.workspace(len(labels))
        w1, b1, w2, b2, w3, b3 = self.parameters
        dw1, db1, dw2, db2, dw3, db3 = self.slots
        words.random_(-(1 << 63), None)
        a[0].copy_(pixels).mul_(FACTOR).add_(OFFSET)
        torch.addmm(b1, a[0], w1, out=a[1]).relu_()
        a[1].mul_(torch.ge(bits[0], DROPPED - 32768, out=masks[0]))
        torch.addmm(b2, a[1], w2, alpha=KEPT_SCALE, out=a[2]).relu_()
        a[2].mul_(torch.ge(bits[1], DROPPED - 32768, out=masks[1]))
        torch.addmm(b3, a[2], w3, alpha=KEPT_SCALE, out=a[3])

        logp = torch.log_softmax(a[3], 1)
        loss = F.nll_loss(logp, labels, reduction="sum")
        correct = (a[3].argmax(1) == labels).sum()
        torch.exp(logp, out=g[3])
        g[3].scatter_add_(1, labels[:, None], g[3].new_full((len(labels), 1), -1.0))
        g[3].mul_(1 / len(labels))

        # A dropped activation is zero, so the gradient of ReLU is also that of dropout.
        torch.addmm(dw3, a[2].t(), g[3], beta=0, alpha=KEPT_SCALE, out=dw3)
        torch.sum(g[3], 0, out=db3)
        torch.addmm(g[2], g[3], w3.t(), beta=0, alpha=KEPT_SCALE, out=g[2])
        _relu_backward(g[2], a[2], 0.0, grad_input=g[2])
        torch.addmm(dw2, a[1].t(), g[2], beta=0, alpha=KEPT_SCALE, out=dw2)
        torch.sum(g[2], 0, out=db2)
        torch.addmm(g[1], g[2], w2.t(), beta=0, alpha=KEPT_SCALE, out=g[1])
        _relu_backward(g[1], a[1], 0.0, grad_input=g[1])
        torch.addmm(dw1, a[0].t(), g[1], beta=0, out=dw1)
        torch.sum(g[1], 0, out=db1)
        return loss, correct
