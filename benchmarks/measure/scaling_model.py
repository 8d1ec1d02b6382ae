"""What a step would cost on more ranks than there are: a model of the link, and of the step.

A message of n bytes over a link takes alpha + n / B seconds (Hockney, Parallel Computing 20, 1994):
alpha is the latency, B the bandwidth. An all-reduce over p ranks sends

- as a ring, 2 (p - 1) messages of n / p bytes one after the other: 2 (p - 1) (alpha + n / (p B)).
  No algorithm moves fewer bytes (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009);
- by recursive halving and doubling 2 log2(p) messages of n / 2, n / 4, ... bytes:
  2 log2(p) alpha + 2 (p - 1) / p n / B. The same bytes, and the fewest messages for them
  (Thakur, Rabenseifner and Gropp, Int. J. High Perform. Comput. Appl. 19, 2005). For p that are no
  power of two the surplus ranks first fold into a partner and are told the result: two more
  messages of n bytes.

The time of the additions is part of B where B was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

BACKWARD_FRACTION = 2 / 3
"""Part of the computing of a step that is the backward pass: of three matrix products of equal size
a layer needs one is forward and two (for weights and for inputs) are backward."""


@dataclass(frozen=True, slots=True)
class Link:
    """A connection between two ranks."""

    latency_seconds: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A link as measured times imply it."""

    link: Link
    worst_relative_error: float
    """Largest |predicted - measured| / measured over the messages."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Seconds of one rank's step without communication: `overhead + samples * per_sample`."""

    overhead_seconds: float
    seconds_per_sample: float

    def __call__(self, samples: float) -> float:
        return self.overhead_seconds + samples * self.seconds_per_sample


@dataclass(frozen=True, slots=True)
class Prediction:
    """One step on `ranks` ranks; times in seconds."""

    ranks: int
    samples_per_rank: float
    compute: float
    all_reduce: float
    step_without_overlap: float
    """Nothing is sent before the backward pass has ended."""
    step_with_overlap: float
    """Everything is sent behind the backward pass, as far as that lasts."""
    efficiency_without_overlap: float
    efficiency_with_overlap: float


def ring(link: Link, ranks: int, num_bytes: float) -> float:
    """Seconds of a ring all-reduce of `num_bytes` on each of `ranks` ranks."""
    messages = 2 * (ranks - 1)
    return messages * (link.latency_seconds + num_bytes / (ranks * link.bytes_per_second))


def halving_doubling(link: Link, ranks: int, num_bytes: float) -> float:
    """Seconds of an all-reduce by recursive halving and doubling."""
    height = int(math.log2(ranks))
    core = 1 << height
    seconds = 2 * height * link.latency_seconds
    seconds += 2 * (core - 1) / core * num_bytes / link.bytes_per_second
    if core < ranks:
        seconds += 2 * (link.latency_seconds + num_bytes / link.bytes_per_second)
    return seconds


AllReduceTime = Callable[[Link, int, float], float]
ALGORITHMS: dict[str, AllReduceTime] = {"ring": ring, "halving_doubling": halving_doubling}


def fit_link(ranks: int, num_bytes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """The latency and bandwidth with which a ring of `ranks` takes `seconds` for `num_bytes`.

    Least squares of the relative errors, since sizes span decades; neither may come out negative.

    Raises:
        ValueError: With fewer than two ranks or two sizes, or a time that is not above 0.
    """
    sizes, times = np.asarray(num_bytes, dtype=float), np.asarray(seconds, dtype=float)
    if ranks < 2 or len(set(num_bytes)) < 2 or len(sizes) != len(times) or not (times > 0).all():
        raise ValueError(f"no link can be fitted to {len(times)} times on {ranks} ranks")
    messages = 2 * (ranks - 1)
    fixed, slope = _fit_line(sizes / ranks, times / messages)
    slope = max(slope, np.finfo(float).tiny)
    link = Link(fixed, 1 / slope)
    predicted = np.array([ring(link, ranks, size) for size in sizes])
    return Fit(link, float(np.abs(predicted / times - 1).max()))


def fit_compute(samples: Sequence[int], seconds: Sequence[float]) -> Compute:
    """A line through the measured times of steps of different sizes, by their relative errors."""
    sizes, times = np.asarray(samples, dtype=float), np.asarray(seconds, dtype=float)
    if len(set(samples)) < 2 or len(sizes) != len(times) or not (times > 0).all():
        raise ValueError(f"no line can be fitted to {len(times)} times")
    return Compute(*_fit_line(sizes, times))


def predict(
    ranks: int,
    samples_per_rank: float,
    *,
    compute: Compute,
    link: Link,
    num_bytes: int,
    all_reduce: AllReduceTime,
    alone: float,
) -> Prediction:
    """One step.

    Args:
        ranks: How many.
        samples_per_rank: Of one step.
        compute: Time of one rank's part.
        link: Between two ranks.
        num_bytes: Of all gradients.
        all_reduce: One of ALGORITHMS.
        alone: Seconds in which one rank would do what each rank is to do: its own part (weak
            scaling), or a `ranks`-th of all (strong scaling).
    """
    working = compute(samples_per_rank)
    talking = all_reduce(link, ranks, num_bytes)
    backward = BACKWARD_FRACTION * working
    plain, hidden = working + talking, working - backward + max(backward, talking)
    return Prediction(
        ranks=ranks,
        samples_per_rank=samples_per_rank,
        compute=working,
        all_reduce=talking,
        step_without_overlap=plain,
        step_with_overlap=hidden,
        efficiency_without_overlap=alone / plain,
        efficiency_with_overlap=alone / hidden,
    )


def weak_scaling(
    ranks: Sequence[int],
    samples_per_rank: int,
    *,
    compute: Compute,
    link: Link,
    num_bytes: int,
    all_reduce: AllReduceTime,
) -> list[Prediction]:
    """Every rank keeps its batch: the global batch grows. Efficiency is T(1) / T(p)."""
    alone = compute(samples_per_rank)
    return [
        predict(
            count,
            samples_per_rank,
            compute=compute,
            link=link,
            num_bytes=num_bytes,
            all_reduce=all_reduce,
            alone=alone,
        )
        for count in ranks
    ]


def strong_scaling(
    ranks: Sequence[int],
    global_batch: int,
    *,
    compute: Compute,
    link: Link,
    num_bytes: int,
    all_reduce: AllReduceTime,
) -> list[Prediction]:
    """The global batch stays, as runs here have it. Efficiency is T(1) / (p T(p)).

    A world larger than the batch is left out: a rank needs a sample.
    """
    alone = compute(global_batch)
    return [
        predict(
            count,
            math.ceil(global_batch / count),
            compute=compute,
            link=link,
            num_bytes=num_bytes,
            all_reduce=all_reduce,
            alone=alone / count,
        )
        for count in ranks
        if count <= global_batch
    ]


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope, both 0 or more, that minimise the sum of squared relative errors."""
    ones = np.ones_like(x)
    design = np.stack([ones, x], axis=1) / y[:, None]
    (intercept, slope), *_ = np.linalg.lstsq(design, ones, rcond=None)
    if intercept < 0:
        column = design[:, 1]
        intercept, slope = 0.0, float(column.sum() / (column @ column))
    elif slope < 0:
        column = design[:, 0]
        intercept, slope = float(column.sum() / (column @ column)), 0.0
    return float(intercept), float(slope)
