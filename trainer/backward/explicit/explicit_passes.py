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

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from data.normalize import Normalize
from data.samples import Batch
from trainer.backward.autograd import Sums
from trainer.backward.explicit.chain_rule import ChainRule, convert, find_head
from trainer.backward.explicit.onednn import prefers_onednn
from trainer.backward.explicit.plain_layers import Layer, Shape
from trainer.backward.explicit.side_streams import Branches
from trainer.backward.explicit.workspace import Call, StagedBatches, Views, Workspace
from trainer.networks.dropout import least_kept
from trainer.optim.flat import FlatParameters, entered, untracked
from trainer.ranks.precision import Precision, loss_scale


class ExplicitPasses:
    """The forward and the backward pass of a network that `describe` accepts.

    Batches are made ready first, several at a time if the caller stages them, and then gone through
    one by one.
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
        scale = None
        if precision.scaler.is_enabled():
            precision.scaler.scale(flat.values[:0])  # the scale is made when one is first needed
            scale = loss_scale(precision.scaler)
        values, gradients = iter(flat.views(self.values)), iter(flat.views(self.gradients))
        self.layers = [Layer(shape, values, gradients) for shape in shapes]
        self.normalize = normalize
        self.num_classes = shapes[-1].linear.out_features
        self.label_smoothing = label_smoothing
        self.workspaces: dict[tuple[int, int], Workspace] = {}
        self.staged: StagedBatches | None = None
        self.fresh = True
        device = flat.gradients.device
        self.untracked = untracked(device)
        self.drawing = Branches(device, 1)
        self.chain = ChainRule(
            self.layers,
            Branches(device, len(self.layers)),
            head=find_head(self.layers, device),
            # For products in shorter types torch asks oneDNN by itself.
            onednn=device.type == "cpu" and not self.rounds and prefers_onednn(),
            loss_scale=scale,
            finish=self._finish,
        )
        self.in_parts({0: 0}, lambda: None)

    @property
    def num_bytes(self) -> int:
        """Of everything that is kept from step to step, but the flat buffers."""
        own = (self.values, self.gradients) if self.rounds else ()
        works = (work.num_bytes for work in self.workspaces.values())
        return sum(works) + sum(tensor.nbytes for tensor in own)

    def clear(self) -> None:
        self.fresh = True

    def pop_gradient(self, out: Tensor) -> None:
        if self.fresh:
            self.flat.gradients.zero_()
        self.fresh = True
        out.copy_(self.flat.gradients)

    def set_gradient(self, flat: Tensor) -> None:
        self.flat.gradients.copy_(flat)

    def stage(self, inputs: Tensor, targets: Tensor, loss_weight: float, count: int) -> None:
        """Make `count` batches of equal size ready; the next calls go through one after the other.

        What does not depend on the weights is done for all of them at once. Random numbers are
        drawn batch by batch: how many are made ready together does not change them.
        """
        assert self.staged is None
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
            work.logp_gradients.fill_(-loss_weight * others)
            self.staged = staged = StagedBatches(work, targets)
            hot = -loss_weight * (1 - smoothing + others)
            work.logp_gradients.scatter_(2, staged.targets, hot)

    def __call__(self, batch: Batch, loss_weight: float) -> Sums:
        """See `Passes`; a batch that has been staged is not looked at again.

        Losses and hits `(n,)` of n staged batches are returned with the last of them.
        """
        if self.staged is None:
            self.stage(batch.inputs, batch.targets, loss_weight, 1)
        staged = self.staged
        assert staged is not None
        with entered(self.untracked):
            index = staged.used
            staged.used += 1
            for call in self._calls(staged.work, staged.work.batches[index]):
                call()
            self.fresh = False
            if staged.used < staged.work.count:
                return None, None, None
            staged.measure(self.label_smoothing)
            self.staged = None
        if index:
            return staged.losses, staged.hits, None
        return staged.losses[0], staged.hits[0], None

    def _calls(self, work: Workspace, batch: Views) -> Iterable[Call]:
        """The operations on a batch, in order. On a CPU they are written down once."""
        if self.chain.branches.streams:
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
        yield from convert(self.flat.values, self.values)
        yield from self.chain.calls(work, batch, fresh=self.fresh or self.rounds)
        yield from self._total(0)

    def _finish(self, layer: int) -> Iterator[Call]:
        """The gradients of a layer and of those above it are there: a part of them may be full."""
        if layer and layer in self.starts:
            yield from self._total(layer)
            yield self.hand_over

    def _total(self, layer: int) -> Iterator[Call]:
        """Add up, in float32, the part of the gradient that begins with a layer."""
        if self.rounds:
            above = [start for index, start in self.starts.items() if index > layer]
            part = slice(self.starts[layer], min(above, default=None))
            total = self.flat.gradients[part]
            yield partial(total.copy_ if self.fresh else total.add_, self.gradients[part])

    def in_parts(self, starts: Mapping[int, int], hand_over: Callable[[], None]) -> None:
        """Say when a part of the gradient is there.

        Args:
            starts: Layers with which a part begins, and where in the buffer; 0 is one of them.
            hand_over: Called for each part but that of layer 0, the last one first.
        """
        self.starts, self.hand_over = dict(starts), hand_over
        for work in self.workspaces.values():
            for batch in work.batches:
                batch.calls.clear()

    def first_product(self, size: int) -> Callable[[], object]:
        """What computes the gradient of the first layer's weights for a batch of so many samples,
        of zeros."""
        layer = self.layers[0]
        new = functools.partial(torch.zeros, dtype=self.values.dtype, device=self.values.device)
        inputs, outputs = layer.weight.shape
        return self.chain.weigh(layer, new(size, inputs).t(), new(size, outputs), 1.0, fresh=True)
