"""The all-reduce of gradients that passes written out leave in one buffer, in one part or more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.loading.order import GlobalBatch, MicroBatch
from trainer.engines.reduction import Reduction
from trainer.ranks.neighbour import Neighbour

NOTHING: AbstractContextManager[Any] = nullcontext()


class FlatAllReduce(Reduction):
    """All-reduces of parts of a buffer, each begun when the last pass has filled it.

    The buffer is filled from its end, the last layer's gradient first. A part on its way is hidden
    behind what is computed for the parts below; the last one, with the first layer's gradient,
    hides behind nothing. On a GPU NCCL takes parts on a stream of its own, in a recording too.
    """

    def __init__(
        self,
        gradients: Tensor,
        dtype: torch.dtype | None = None,
        starts: Sequence[int] = (0,),
        neighbour: Neighbour | None = None,
    ) -> None:
        """
        Args:
            gradients: The buffer, float32.
            dtype: In which it travels and is added; None: as it is.
            starts: Where each part begins, the one at the end of the buffer first; ends with 0.
            neighbour: Whose memory has what is to be added, as it is; None: it travels.
        """
        assert starts[-1] == 0
        self.neighbour = neighbour
        stops = [gradients.numel(), *starts[:-1]]
        self.parts = [gradients[a:b] for a, b in zip(starts, stops, strict=True)]
        self.sent = self.parts
        if dtype is not None:
            self.sent = [torch.empty_like(part, dtype=dtype) for part in self.parts]
        self.whole = True
        """Whether nothing is added to the gradient after this micro-batch."""
        self.under_way: list[Any] = []

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        self.whole = micro.ends_global_batch
        return NOTHING

    def ready(self) -> None:
        """The passes have filled the next part."""
        if self.whole:
            self._begin()

    def finish(self) -> None:
        while len(self.under_way) < len(self.parts):
            self._begin()
        for work, part, sent in zip(self.under_way, self.parts, self.sent, strict=True):
            if work is not None:
                work.wait()
            if sent is not part:
                part.copy_(sent)
        self.under_way = []

    def _begin(self) -> None:
        index = len(self.under_way)
        part, sent = self.parts[index], self.sent[index]
        if sent is not part:
            sent.copy_(part)
        if self.neighbour is not None:
            self.neighbour.sum_(sent)
            self.under_way.append(None)
        else:
            self.under_way.append(dist.all_reduce(sent, async_op=len(self.parts) > 1))
