"""Training loss and score, kept on the device until a logging step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.collectives import max_, sum_
from trainer.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Totals:
    """Means over all samples of all ranks since the last collection."""

    loss: float
    score: float


@dataclass(slots=True)
class Meter:
    """Holds one small tensor per micro-batch: appending costs the device nothing."""

    windows: list[int] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, window: int, loss_sum: Tensor, score: Tensor, count: int) -> None:
        """Remember the summed loss and the summed score of a micro-batch."""
        self.windows.append(window)
        self.losses.append(loss_sum)
        self.scores.append(score)
        self.counts.append(count)

    def forget(self, window: int) -> None:
        """Drop a global batch whose optimizer step was skipped."""
        while self.windows and self.windows[-1] == window:
            self.windows.pop(), self.losses.pop(), self.scores.pop(), self.counts.pop()

    def collect(self, runtime: Runtime) -> Totals:
        """Average over micro-batches and ranks, and start anew. Waits for the device."""
        rows = torch.zeros(runtime.world_size, 3, dtype=torch.float64, device=runtime.device)
        if self.losses:
            rows[runtime.rank, 0] = torch.stack(self.losses).double().sum()
            rows[runtime.rank, 1] = torch.stack(self.scores).sum()
            rows[runtime.rank, 2] = sum(self.counts)
        # Every rank fills its own row of zeros, so the sum is exact and has a fixed order.
        loss, score, count = sum_(runtime, rows).sum(0).tolist()
        self.windows, self.losses, self.scores, self.counts = [], [], [], []
        return Totals(loss / max(count, 1), score / max(count, 1))

    def first_bad_window(self, runtime: Runtime) -> int | None:
        """First global batch since the last collection whose loss was not finite on some rank.

        Waits for the device; one all-reduce.
        """
        latest = torch.iinfo(torch.int64).max
        mine = latest
        if self.losses:
            losses = torch.stack(self.losses)
            if not math.isfinite(losses.double().sum()):
                bad = (~torch.isfinite(losses)).nonzero()
                mine = min(self.windows[int(index)] for index in bad)
        negated = max_(runtime, torch.tensor(-mine, device=runtime.device))
        first = -int(negated)
        return None if first == latest else first

    def merge(self, other: Meter) -> None:
        """Take over the micro-batches of another rank."""
        self.windows += other.windows
        self.losses += other.losses
        self.scores += other.scores
        self.counts += other.counts

    def state_dict(self) -> dict[str, Any]:
        empty = torch.empty(0)
        return {
            "windows": list(self.windows),
            "losses": torch.stack(self.losses).cpu() if self.losses else empty,
            "scores": torch.stack(self.scores).cpu() if self.scores else empty,
            "counts": list(self.counts),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.windows = list(state["windows"])
        self.losses = list(state["losses"].to(device).unbind())
        self.scores = list(state["scores"].to(device).unbind())
        self.counts = list(state["counts"])


class Stopwatch:
    """Training time and throughput; time between a `lap` and the next `mark` is not counted."""

    def __init__(self) -> None:
        self.total_seconds = 0.0
        self._since_read = 0.0
        self._samples = 0
        self._mark = time.perf_counter()

    def mark(self) -> None:
        self._mark = time.perf_counter()

    def lap(self, samples: int) -> None:
        """The work since the last mark was on this many samples."""
        seconds = time.perf_counter() - self._mark
        self._mark += seconds
        self.total_seconds += seconds
        self._since_read += seconds
        self._samples += samples

    def read(self) -> float:
        """Samples per second since the last reading."""
        rate = self._samples / max(self._since_read, 1e-9)
        self._since_read, self._samples = 0.0, 0
        return rate
