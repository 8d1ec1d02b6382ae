"""The order of samples is a pure function of (seed, epoch); each rank takes slices of it.

The global batch of step s in epoch e is `order(e)[s * G : (s + 1) * G]`, whatever the world size;
epoch_schedule.py says which s, e and G the n-th global batch of a run has.
Its bounds are cut into parts: one per rank, or under exact reduction a fixed number of shards of
which every rank takes a contiguous run. Parts are cut into micro-batches. Nothing here has state:
the position of a run is the number of global batches delivered, kept by the trainer.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from configs.errors import InputError
from data.loading.epoch_schedule import EpochSchedule


def derive_seed(*parts: object) -> int:
    """A 63-bit seed for one purpose, statistically independent of those for other parts."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class MicroBatch(NamedTuple):
    """Samples [start, stop) of a global batch that go through the model together."""

    start: int
    stop: int
    shard: int
    """Number of the part of the global batch: the rank, or the shard under exact reduction."""
    begins_shard: bool
    ends_shard: bool
    ends_global_batch: bool
    """Whether it is this rank's last micro-batch before the optimizer step."""

    @property
    def size(self) -> int:
        return self.stop - self.start


class GlobalBatch(NamedTuple):
    """One global batch, and this rank's micro-batches of it."""

    number: int
    """Global batches before it since the run began."""
    epoch: int
    start: int
    """Position of its first sample in the order of the epoch."""
    size: int
    """Samples in it over all ranks; the last one of an epoch may be short."""
    ends_epoch: bool
    micro_batches: tuple[MicroBatch, ...]

    @property
    def micro_batch_sizes(self) -> list[int]:
        """Samples in each of this rank's micro-batches."""
        return [micro.size for micro in self.micro_batches]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which samples each rank trains on in every step.

    Args:
        num_samples: Samples of an epoch.
        global_batch_size: Samples per optimizer step over all ranks.
        micro_batch_size: Most samples of one micro-batch, or None for a whole part.
        rank: This rank.
        world_size: Number of ranks.
        seed: Seed of the order.
        drop_last: Leave out the short last batch of an epoch.
        batch_schedule: (epoch, another global batch size from it on), ascending, epochs from 0.
        shards: Number of parts of a global batch under exact reduction; None: one per rank.
        user_order: Another order of the samples of an epoch, int64 `(num_samples,)`, than a random
            permutation.
        even: Cut every part into as many micro-batches as the largest one needs, for ranks that
            must go through the model equally often.

    Raises:
        InputError: If a rank or an epoch would be left without samples.
    """

    num_samples: int
    global_batch_size: int
    micro_batch_size: int | None = None
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    drop_last: bool = False
    batch_schedule: tuple[tuple[int, int], ...] = ()
    shards: int | None = None
    user_order: Callable[[int], Tensor] | None = None
    even: bool = False

    def __post_init__(self) -> None:
        sizes, world = self.epoch_schedule.sizes, self.world_size
        if world > sizes[0]:
            raise InputError(
                self._name_of(sizes[0]),
                given=sizes[0],
                expected=f"at least one sample for each of the {world} ranks",
                remedy=f"Raise it, or start at most {sizes[0]} ranks.",
            )
        if self.shards is not None and (world & (world - 1) or self.shards % world):
            raise InputError(
                "number of ranks",
                given=world,
                expected=f"a power of two up to parallel.shards={self.shards} for exact reduction",
                remedy="Start another number of ranks, or use --parallel.reduction fast.",
            )
        if self.num_samples < (sizes[-1] if self.drop_last else 1):
            raise InputError(
                self._name_of(sizes[-1]),
                given=sizes[-1],
                expected=f"at most the {self.num_samples} training samples with data.drop_last",
            )

    def _name_of(self, size: int) -> str:
        given = size == self.global_batch_size
        return "train.global_batch_size" if given else "train.batch_schedule"

    @functools.cached_property
    def epoch_schedule(self) -> EpochSchedule:
        return EpochSchedule(
            num_samples=self.num_samples,
            batch_sizes=((0, self.global_batch_size), *self.batch_schedule),
            drop_last=self.drop_last,
        )

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of the largest global batch on the rank that has most of them: what ranks
        conclude from it must be the same on all, and their parts may differ by a sample."""
        parts = self.shards or self.world_size
        largest = [-(-size // parts) for size in self.epoch_schedule.sizes]
        most = max(len(self._bounds(0, size, size)) for size in largest)
        return most * (parts // self.world_size)

    @functools.cached_property
    def micro_batch_sizes(self) -> list[int]:
        """Sizes of the micro-batches that this rank ever sees, ascending, short global batches
        included."""
        begin = self.epoch_schedule.global_batches_before
        epochs = [epoch for epoch, _ in self.epoch_schedule.batch_sizes]
        numbers = {*map(begin, epochs), *(begin(epoch + 1) - 1 for epoch in epochs)}
        return sorted({size for n in numbers for size in self.global_batch(n).micro_batch_sizes})

    @property
    def largest_global_batch(self) -> GlobalBatch:
        """A global batch whose size no other exceeds."""
        epoch, _ = max(self.epoch_schedule.batch_sizes, key=lambda stage: stage[1])
        return self.global_batch(self.epoch_schedule.global_batches_before(epoch))

    def global_batch(self, number: int) -> GlobalBatch:
        """The global batch of the run after `number` others."""
        if self._latest[0].number != number:  # the loader asks, and then the loop
            self._latest[0] = self._find(number)
        return self._latest[0]

    def next_global_batches(self, number: int, count: int) -> list[GlobalBatch]:
        """Global batches of one epoch and one size from `number` on, `count` at most."""
        first = self.global_batch(number)
        if count == 1:
            return [first]
        epoch, step, steps, full = self.epoch_schedule.locate(number)
        left = min(count, steps - step, max((self.num_samples - first.start) // full, 1))
        if left == 1:
            return [first]
        size, cut = first.size, first.micro_batches
        return [
            first,
            *(
                GlobalBatch(
                    number + i, epoch, first.start + i * full, size, step + i + 1 == steps, cut
                )
                for i in range(1, left)
            ),
        ]

    @functools.cached_property
    def _latest(self) -> list[GlobalBatch]:
        return [self._find(0)]

    def _find(self, number: int) -> GlobalBatch:
        epoch, step, steps, full = self.epoch_schedule.locate(number)
        start = step * full
        size = min(full, self.num_samples - start)
        return GlobalBatch(number, epoch, start, size, step + 1 == steps, self._cut(size))

    def order(self, epoch: int) -> Tensor:
        """Permutation of all samples in `epoch`, int64 `(num_samples,)`, or the user's order."""
        if self.user_order is not None:
            return self.user_order(epoch)
        return _order(self.seed, epoch, self.num_samples)

    def samples(self, number: int) -> list[int]:
        """Indices of all samples of a global batch, whoever computes them."""
        found = self.global_batch(number)
        return self.order(found.epoch)[found.start : found.start + found.size].tolist()

    def indices(self, global_batch: GlobalBatch) -> Iterator[Tensor]:
        """Sample indices of each of this rank's micro-batches, int64."""
        order = self.order(global_batch.epoch)
        for micro in global_batch.micro_batches:
            yield order[global_batch.start + micro.start : global_batch.start + micro.stop]

    @functools.cached_property
    def _cuts(self) -> dict[int, tuple[MicroBatch, ...]]:
        return {}  # few sizes ever occur: full and short global batches

    def _cut(self, size: int) -> tuple[MicroBatch, ...]:
        if size not in self._cuts:
            self._cuts[size] = self._micro_batches(size)
        return self._cuts[size]

    def _micro_batches(self, size: int) -> tuple[MicroBatch, ...]:
        parts = self.shards or self.world_size
        mine = parts // self.world_size
        cuts: list[tuple[int, int, int, bool, bool]] = []
        for shard in range(self.rank * mine, (self.rank + 1) * mine):
            start, stop = size * shard // parts, size * (shard + 1) // parts
            bounds = self._bounds(start, stop, -(-size // parts))
            last = len(bounds) - 1
            cuts += [(*bound, shard, i == 0, i == last) for i, bound in enumerate(bounds)]
        return tuple(MicroBatch(*cut, ends_global_batch=cut is cuts[-1]) for cut in cuts)

    def _bounds(self, start: int, stop: int, largest: int) -> list[tuple[int, int]]:
        """Micro-batches of a part; `largest` is the size of the largest part."""
        if self.even:
            count = -(-largest // (self.micro_batch_size or largest))
            edges = [start + (stop - start) * i // count for i in range(count + 1)]
            return list(itertools.pairwise(edges))
        most = self.micro_batch_size or max(stop - start, 1)
        # A part may be empty in the short last batch: its rank still takes part in the step.
        starts = range(start, stop, most) or range(start, start + 1)
        return [(s, min(s + most, stop)) for s in starts]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(num_samples, generator=generator)


def evaluation_batches(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Bounds of the batches of an evaluation, none padded and none repeated.

    They do not depend on the number of ranks: rank r evaluates batches r, r + W, r + 2W, ..., so
    every batch has the same shape, and so the same bits, wherever it is computed.
    """
    return [(s, min(s + batch_size, num_samples)) for s in range(0, num_samples, batch_size)]
