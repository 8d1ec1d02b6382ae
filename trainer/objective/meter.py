"""Training loss and score, kept on the device until a logging step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.ranks.collectives import max_, sum_
from trainer.ranks.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Totals:
    """Means over all samples of all ranks, or over their weight, since the last collection."""

    loss: float
    score: float
    count: float
    """Of the samples, or their weight."""


class HostCopies:
    """Tensors on their way to the host; whoever asks for them waits for the device."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self.tensors = [_pinned(t).copy_(t, non_blocking=True) for t in tensors]
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()  # what is launched later is not waited for

    def wait(self) -> list[Tensor]:
        if self.event is not None:
            self.event.synchronize()
            self.event = None
        return self.tensors


def _pinned(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)


def in_a_row(tensors: Sequence[Tensor]) -> Tensor:
    """Scalars and vectors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@dataclass(slots=True)
class UnreadMetrics:
    """Metrics of some micro-batches."""

    global_batches: list[int] = field(default_factory=list)
    counts: list[float] = field(default_factory=list)
    """Samples, or their weight where the loss has one."""
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    coming: list[HostCopies] = field(default_factory=list)
    """Losses, scores and perhaps weights `(n,)` of the micro-batches after those."""

    def fetch(self) -> None:
        """Have everything on the host. Waits for the device."""
        for copies in self.coming:
            losses, scores, *weights = copies.wait()
            self.losses += losses.tolist()
            self.scores += scores.tolist()
            for weight in weights:
                self.counts += weight.tolist()
        self.coming = []

    def totals(
        self, runtime: Runtime, beside: Sequence[float] = ()
    ) -> tuple[Totals, list[list[float]]]:
        """Averages over micro-batches and ranks. Waits for the device; one all-reduce.

        Args:
            runtime: This rank.
            beside: Other numbers of this rank, as many as the others give, which travel along.

        Returns:
            The averages, and the other numbers of each rank.
        """
        self.fetch()
        mine = [sum(self.losses), sum(self.scores), sum(self.counts), *beside]
        sums, ranks = mine[:3], [mine]
        if runtime.world_size > 1:
            # Every rank fills its own row of zeros, so the sum is exact and has a fixed order.
            rows = torch.zeros(
                runtime.world_size, len(mine), dtype=torch.float64, device=runtime.device
            )
            rows[runtime.rank] = torch.tensor(mine, dtype=torch.float64)
            found = sum_(runtime, rows)
            sums, ranks = found[:, :3].contiguous().sum(0).tolist(), found.tolist()
        loss, score, count = sums
        averages = Totals(loss / (count or 1), score / (count or 1), count)
        return averages, [row[3:] for row in ranks]

    def first_bad_global_batch(self, runtime: Runtime) -> int | None:
        """First global batch whose loss was not finite on some rank.

        Waits for the device; one all-reduce.
        """
        self.fetch()
        latest = torch.iinfo(torch.int64).max
        losses = zip(self.global_batches, self.losses, strict=True)
        first = min((w for w, loss in losses if not math.isfinite(loss)), default=latest)
        if runtime.world_size > 1:
            first = -int(max_(runtime, torch.tensor(-first, device=runtime.device)))
        return None if first == latest else first


@dataclass(slots=True)
class Meter:
    """Remembers every micro-batch; nothing is fetched from the device before somebody asks."""

    known: UnreadMetrics = field(default_factory=UnreadMetrics)
    global_batches: list[int] = field(default_factory=list)
    """Of the micro-batches since, whose tensors have not set out yet."""
    counts: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    """In place of counts, where the loss has them."""

    def add(
        self,
        global_batch: int,
        loss_sum: Tensor | None,
        score: Tensor | None,
        count: int | Tensor,
    ) -> None:
        """Remember the summed loss and score of a micro-batch, and the number of its samples, or
        their weight.

        None: they come with those of a later micro-batch, as `(n,)`, in the order of the batches.
        """
        self.global_batches.append(global_batch)
        if isinstance(count, Tensor):
            self.weights.append(count)
        else:
            self.counts.append(count)
        if loss_sum is not None and score is not None:
            self.losses.append(loss_sum)
            self.scores.append(score)

    def extend(
        self,
        global_batches: Sequence[int],
        losses: Tensor,
        scores: Tensor,
        counts: Sequence[int] | Tensor,
    ) -> None:
        """Remember some micro-batches in a row, `(n,)`; the tensors may be overwritten then."""
        self._send()
        self.known.global_batches += global_batches
        weights = [counts] if isinstance(counts, Tensor) else []
        if not isinstance(counts, Tensor):
            self.known.counts += counts
        sent = [losses, scores, *weights]
        self.known.coming.append(HostCopies([t if t.is_cuda else t.clone() for t in sent]))

    def unread(self) -> UnreadMetrics:
        """What has come together since the last time; starts anew. Does not wait."""
        self._send()
        found, self.known = self.known, UnreadMetrics()
        return found

    def collect(self, runtime: Runtime) -> Totals:
        """Average over micro-batches and ranks, and start anew. Waits for the device."""
        return self.unread().totals(runtime)[0]

    def first_bad_global_batch(self, runtime: Runtime) -> int | None:
        """See `UnreadMetrics.first_bad_global_batch`; nothing is forgotten."""
        self._send()
        return self.known.first_bad_global_batch(runtime)

    def forget(self, global_batch: int) -> None:
        """Drop a global batch whose optimizer step was skipped. Waits for the device."""
        metrics = self._all()
        kept = [
            index for index, number in enumerate(metrics.global_batches) if number != global_batch
        ]
        self.known = UnreadMetrics(
            [metrics.global_batches[index] for index in kept],
            [metrics.counts[index] for index in kept],
            [metrics.losses[index] for index in kept],
            [metrics.scores[index] for index in kept],
        )

    def merge(self, other: Meter) -> None:
        """Take over the micro-batches of another one. Waits for the device."""
        mine, theirs = self._all(), other._all()
        mine.global_batches += theirs.global_batches
        mine.counts += theirs.counts
        mine.losses += theirs.losses
        mine.scores += theirs.scores

    def state_dict(self) -> dict[str, Any]:
        metrics = self._all()
        return {
            "windows": list(metrics.global_batches),
            "losses": torch.tensor(metrics.losses, dtype=torch.float64),
            "scores": torch.tensor(metrics.scores, dtype=torch.float64),
            "counts": list(metrics.counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        losses, scores = (state[name].tolist() for name in ("losses", "scores"))
        self.unread()
        self.known = UnreadMetrics(list(state["windows"]), list(state["counts"]), losses, scores)

    def _send(self) -> None:
        """Let what lies on the device set out for the host."""
        if self.losses:
            self.known.global_batches += self.global_batches
            self.known.counts += self.counts
            sent = [self.losses, self.scores, *([self.weights] if self.weights else [])]
            self.known.coming.append(HostCopies([in_a_row(tensors) for tensors in sent]))
            self.global_batches, self.counts = [], []
            self.losses, self.scores, self.weights = [], [], []

    def _all(self) -> UnreadMetrics:
        self._send()
        self.known.fetch()
        return self.known
