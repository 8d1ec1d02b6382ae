"""Memory of the written-out passes, allocated once for every shape of what they are given."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, float32

from trainer.optim.fused import padded

Call = Callable[[], Any]


@dataclass(slots=True)
class Views:
    """What belongs to one batch of a workspace."""

    inputs: Tensor
    """`(B, in)`, normalised."""
    transposed: Tensor
    """The same as `(in, B)`."""
    keep: list[Tensor]
    """For each layer with dropout 1 where an activation is kept and else 0, `(B, out)`."""
    outputs: Tensor
    """What the last layer writes: the logits, or with another type what they are copied from."""
    logits: Tensor
    logp: Tensor
    logp_gradient: Tensor
    """The gradient of the loss by the log-probabilities; like these two `(B, classes)` float32."""
    drawn: Any = None
    """Event on a GPU: the masks are there."""
    calls: dict[bool, list[Call]] = field(default_factory=dict)
    """The passes over this batch, where its gradient begins a new sum and where it does not."""


class Workspace:
    """Every tensor that `count` batches of `size` samples need, one after the other.

    Args:
        count: Batches that are made ready together.
        size: Samples in each.
        input_shape: Of a sample.
        widths: Outputs of each layer.
        dropout: Whether each layer has dropout.
        dtype: Of all tensors but those of the loss, which is computed in float32.
        device: Where they lie.
    """

    def __init__(
        self,
        count: int,
        size: int,
        input_shape: Sequence[int],
        widths: Sequence[int],
        dropout: Sequence[bool],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.count, self.size = count, size
        new = functools.partial(torch.empty, dtype=dtype, device=device)
        self.inputs = _aligned(new, count, size, math.prod(input_shape))
        self.normalized = self.inputs.view(count, size, *input_shape)
        exact = functools.partial(torch.empty, dtype=float32, device=device)
        self.logits, self.logp, self.logp_gradients = (
            _aligned(exact, count, size, widths[-1]) for _ in range(3)
        )
        # One random 16-bit number for every activation that may be dropped.
        drawn = [size * width * drops for width, drops in zip(widths, dropout, strict=True)]
        words = new((count, math.ceil(sum(drawn) / 4)), dtype=torch.int64)
        self.words = list(words) if sum(drawn) else []
        self.draws = torch.split(words.view(torch.int16)[:, : sum(drawn)], drawn, 1)
        self.keep = torch.split(new((count, sum(drawn))), drawn, 1)
        self.activations = [new((size, width)) for width in widths[:-1]]
        self.gradients = [new((size, width)) for width in widths]
        self.slope = self.gradients[-1]
        """The gradient by the logits in float32, before it is rounded."""
        logits = outputs = list(self.logits)
        if dtype is not float32:
            self.normalized = exact((count, size, *input_shape))
            self.slope = exact((size, widths[-1]))
            outputs = [new((size, widths[-1]))] * count
        self.batches = [
            Views(
                inputs=self.inputs[index],
                transposed=self.inputs[index].t(),
                keep=[
                    keep[index].view(size if drops else 0, width)
                    for keep, width, drops in zip(self.keep, widths, dropout, strict=True)
                ],
                outputs=outputs[index],
                logits=logits[index],
                logp=self.logp[index],
                logp_gradient=self.logp_gradients[index],
            )
            for index in range(count)
        ]

    @property
    def num_bytes(self) -> int:
        batches = (
            self.inputs,
            self.logits,
            self.logp,
            self.logp_gradients,
            *self.draws,
            *self.keep,
        )
        shared = (*self.activations, *self.gradients)
        rounding = (self.normalized, self.slope, *(batch.outputs for batch in self.batches))
        stored = [tensor.untyped_storage() for tensor in (*batches, *shared, *rounding)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in stored}.values())


def _aligned(new: Callable[..., Tensor], count: int, size: int, width: int) -> Tensor:
    """`(count, size, width)` of which every batch begins where its bits cannot depend on."""
    length = size * width
    flat = new((count, padded(length, new(0).dtype)))
    return flat[:, :length].view(count, size, width)


class StagedBatches:
    """Batches that have been made ready, and how many of them have been used."""

    def __init__(self, work: Workspace, targets: Tensor) -> None:
        self.work = work
        self.targets = targets.view(work.count, work.size, 1)
        self.used = 0
        self.losses = work.logits.new_empty(work.count)
        """Summed over each batch; these and the hits are there once all have been used."""
        self.hits = work.logits.new_empty(work.count, dtype=torch.int64)

    def measure(self, smoothing: float) -> None:
        """The summed cross-entropy and the correct predictions of every batch."""
        work = self.work
        right = work.logits.argmax(2, keepdim=True) == self.targets
        torch.sum(right.squeeze(2), 1, out=self.hits)
        logp = torch.gather(work.logp, 2, self.targets).squeeze(2)
        torch.sum(logp, 1, out=self.losses)
        self.losses.mul_(smoothing - 1)
        if smoothing:
            share = smoothing / work.logp.shape[2]
            self.losses.sub_(work.logp.sum((1, 2)), alpha=share)
