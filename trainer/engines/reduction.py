"""How the gradients of all ranks become one: a fast all-reduce, or an exact pairwise tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.loading.order import GlobalBatch, MicroBatch
from trainer.backward.autograd import AutogradPasses, Passes
from trainer.engines.unused import check_used, refuse_unused
from trainer.networks.module_state import Buffers
from trainer.ranks.collectives import max_
from trainer.ranks.neighbour import meet_neighbour
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime

NOTHING: AbstractContextManager[Any] = nullcontext()


class Reduction:
    """How the gradients of all ranks become one; with one rank there is nothing to do."""

    gradient_scale = 1.0
    """Factor of the loss that undoes an average over ranks."""
    waits: Literal["within the backward pass", "after the backward pass"] = (
        "after the backward pass"
    )
    """Where a rank waits for the others."""

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of one micro-batch."""
        return NOTHING

    def finish(self) -> None:
        """After the last micro-batch: every rank's `.grad` holds the sum over all ranks."""

    def state_dict(self) -> dict[str, Any]:
        """What this rank remembers from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take it over; an empty one is that of a new run."""


class AllReduce(Reduction):
    """DDP overlaps the all-reduce with the last backward pass; the earlier ones stay local."""

    waits = "within the backward pass"

    def __init__(self, ddp: DistributedDataParallel, world_size: int) -> None:
        self.ddp = ddp
        self.named = list(ddp.module.named_parameters())  # once: walking a module takes its time
        self.gradient_scale = float(world_size)  # DDP averages over ranks, we want the sum

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        return nullcontext() if micro.ends_global_batch else self.ddp.no_sync()

    def finish(self) -> None:
        if not self.ddp.find_unused_parameters:
            check_used(self.named)


class PairwiseTree(Reduction):
    """Shard gradients summed along one fixed binary tree, whoever computes them.

    Every shard draws its random numbers from a stream of its own, f(seed, global batch, shard). A
    rank sums its contiguous shards as a subtree; then ranks exchange partial sums with partners at
    distance 1, 2, 4, ... IEEE addition is commutative, so both partners get the same bits, and the
    sequence of additions does not depend on the number of ranks. Floating-point buffers (batch-norm
    statistics) start each shard from the same value and become the mean over the shards that have
    samples; integer ones (their counters) count one micro-batch per global batch.
    """

    def __init__(
        self,
        module: nn.Module,
        passes: Passes,
        runtime: Runtime,
        *,
        shards: int,
        seed: int,
        finds_unused: bool = False,
    ) -> None:
        self.module = module
        self.passes = passes
        self.finds_unused = finds_unused
        self.buffers = Buffers(module, floating=True)
        self.counters = Buffers(module, floating=False)
        self.runtime = runtime
        numel = passes.size + sum(buffer.numel() for buffer in self.buffers)
        self.neighbour = meet_neighbour(runtime, numel)
        self.shards = shards
        self.seed = seed
        self.subtrees: list[tuple[int, Tensor]] = []
        self.spare: list[Tensor] = []
        self.start: list[Tensor] = []
        self.counted: list[Tensor] = []
        self.filled = shards
        """Shards with samples in this global batch; a short last one may have fewer than shards."""

    @contextmanager
    def micro_batch(self, global_batch: GlobalBatch, micro: MicroBatch) -> Iterator[None]:
        if micro.begins_shard:
            self.filled = min(global_batch.size, self.shards)
            seed_stream(self.seed, "shard", global_batch.number, micro.shard)
            if not self.subtrees:
                self.start = [buffer.clone() for buffer in (*self.buffers, *self.counters)]
            for buffer, start in zip((*self.buffers, *self.counters), self.start, strict=True):
                buffer.copy_(start)
        yield
        if not self.counted and micro.size:
            self.counted = [buffer.clone() for buffer in self.counters]
        if micro.ends_shard:
            self._push(empty=not micro.size)

    @torch.no_grad()
    def finish(self) -> None:
        (_, total), self.subtrees = self.subtrees[0], []
        distance = 1
        while distance < self.runtime.world_size:
            if self.neighbour is not None:
                self.neighbour.sum_(total)
            else:
                total += self._exchange(total, self.runtime.rank ^ distance)
            distance *= 2
        sizes = [buffer.numel() for buffer in self.buffers]
        gradient, *means = torch.split(total, [len(total) - sum(sizes), *sizes])
        if self.runtime.world_size > 1:
            self._agree()
        self.passes.set_gradient(gradient)
        for buffer, mean in zip(self.buffers, means, strict=True):
            buffer.copy_((mean / self.filled).view_as(buffer))
        if self.counted:  # else this rank has no samples, and others tell it
            for buffer, value in zip(self.counters, self.counted, strict=True):
                buffer.copy_(value)
        self.counted = []
        self.spare.append(total)

    def _agree(self) -> None:
        """On which parameters had a gradient in some shard, on whatever rank."""
        if not isinstance(self.passes, AutogradPasses):
            return  # passes written out use all of them
        used = self.passes.used
        if self.finds_unused:
            found = torch.tensor(used, dtype=torch.int32, device=self.runtime.device)
            self.passes.used = [bool(number) for number in max_(self.runtime, found).tolist()]
        elif not all(used):
            names = [name for name, p in self.module.named_parameters() if p.requires_grad]
            refuse_unused(names[used.index(False)])

    @torch.no_grad()
    def _push(self, *, empty: bool) -> None:
        """Add a finished shard, then merge equally high subtrees like a carry in binary."""
        sizes = [self.passes.size, *(buffer.numel() for buffer in self.buffers)]
        # Memory is kept: new tensors of this size would be given back to the system every time.
        flat = (
            self.spare.pop() if self.spare else torch.empty(sum(sizes), device=self.runtime.device)
        )
        gradient, *parts = torch.split(flat, sizes)
        self.passes.pop_gradient(gradient)
        for part, buffer in zip(parts, self.buffers, strict=True):
            part.copy_(buffer.reshape(-1))
            if empty:
                part.zero_()
        height = 0
        while self.subtrees and self.subtrees[-1][0] == height:
            left = self.subtrees.pop()[1].add_(flat)
            self.spare.append(flat)
            flat, height = left, height + 1
        self.subtrees.append((height, flat))

    def _exchange(self, mine: Tensor, partner: int) -> Tensor:
        theirs = torch.empty_like(mine)
        operations = [
            dist.P2POp(dist.isend, mine, partner),
            dist.P2POp(dist.irecv, theirs, partner),
        ]
        for request in dist.batch_isend_irecv(operations):
            request.wait()
        return theirs
