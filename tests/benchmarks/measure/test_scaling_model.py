"""The model of a link and of a step: what it must give where the answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.measure.scaling_model import (
    ALGORITHMS,
    BACKWARD_FRACTION,
    Compute,
    Link,
    fit_compute,
    fit_link,
    halving_doubling,
    ring,
    strong_scaling,
    weak_scaling,
)

LINK = Link(latency_seconds=20e-6, bytes_per_second=5e9)
SIZES = [4**power for power in range(5, 14)]
COMPUTE = Compute(overhead_seconds=1e-4, seconds_per_sample=1e-5)
WORLD: dict[str, Any] = {
    "compute": COMPUTE,
    "link": LINK,
    "num_bytes": 1_000_000,
    "all_reduce": ring,
}


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("link", [LINK, Link(1e-6, 25e9), Link(3e-3, 1e8)])
def test_the_fit_finds_the_link_that_made_the_times(ranks: int, link: Link) -> None:
    """Law: fit(times of a link) is that link; with 2 % noise within a few per cent."""
    times = [ring(link, ranks, size) for size in SIZES]
    fit = fit_link(ranks, SIZES, times)
    assert fit.link.latency_seconds == pytest.approx(link.latency_seconds, rel=1e-6)
    assert fit.link.bytes_per_second == pytest.approx(link.bytes_per_second, rel=1e-6)
    assert fit.worst_relative_error < 1e-6

    noise = np.random.default_rng(0).normal(1, 0.02, len(SIZES))
    noisy = fit_link(ranks, SIZES, [float(t * n) for t, n in zip(times, noise, strict=True)])
    assert noisy.link.latency_seconds == pytest.approx(link.latency_seconds, rel=0.05)
    assert noisy.link.bytes_per_second == pytest.approx(link.bytes_per_second, rel=0.05)
    assert 0 < noisy.worst_relative_error < 0.1


def test_neither_latency_nor_slope_is_fitted_below_zero() -> None:
    """Times that fall with size, or a line through a negative start, give the nearest link."""
    falling = fit_link(2, [1000, 2000, 4000], [3e-3, 2e-3, 1e-3]).link
    assert falling.latency_seconds > 0
    assert falling.bytes_per_second > 1e30
    steep = fit_link(2, [1000, 2000, 4000], [1e-3, 3e-3, 7e-3]).link
    assert steep.latency_seconds == 0
    assert 0 < steep.bytes_per_second < 1e7


@pytest.mark.parametrize(
    ("ranks", "sizes", "times"),
    [(1, [1, 2], [1.0, 2.0]), (2, [8, 8], [1.0, 1.0]), (2, [1, 2], [1.0, 0.0]), (2, [1, 2], [1.0])],
)
def test_too_little_to_fit_is_refused(ranks: int, sizes: list[int], times: list[float]) -> None:
    with pytest.raises(ValueError, match="no link can be fitted"):
        fit_link(ranks, sizes, times)


def test_the_time_of_a_step_is_fitted_as_a_line() -> None:
    found = fit_compute([4, 16, 64], [COMPUTE(4), COMPUTE(16), COMPUTE(64)])
    assert found.overhead_seconds == pytest.approx(COMPUTE.overhead_seconds)
    assert found.seconds_per_sample == pytest.approx(COMPUTE.seconds_per_sample)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_one_rank_says_nothing_and_two_exchange_halves(algorithm: Any) -> None:
    assert algorithm(LINK, 1, 1_000_000) == 0
    expected = 2 * (LINK.latency_seconds + 500_000 / LINK.bytes_per_second)
    assert algorithm(LINK, 2, 1_000_000) == pytest.approx(expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_without_latency_bytes_cost_at_most_twice_their_sending(algorithm: Any) -> None:
    """Limit: 2 n / B as ranks become many."""
    free = Link(0.0, LINK.bytes_per_second)
    bound = 2 * 1_000_000 / LINK.bytes_per_second
    times = [algorithm(free, 2**power, 1_000_000) for power in range(11)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(bound, rel=2e-3)
    assert times[-1] < bound


def test_without_bytes_a_ring_waits_for_every_rank_and_a_tree_for_their_logarithm() -> None:
    assert ring(LINK, 1024, 0) == pytest.approx(2 * 1023 * LINK.latency_seconds)
    assert halving_doubling(LINK, 1024, 0) == pytest.approx(2 * 10 * LINK.latency_seconds)
    assert halving_doubling(LINK, 1023, 0) == pytest.approx(2 * 10 * LINK.latency_seconds)


def test_one_rank_alone_is_perfectly_efficient() -> None:
    for law in (weak_scaling, strong_scaling):
        (alone,) = law([1], 64, **WORLD)
        assert alone.all_reduce == 0
        assert alone.efficiency_without_overlap == alone.efficiency_with_overlap == 1
        assert alone.step_without_overlap == pytest.approx(COMPUTE(64))


def test_overlap_hides_communication_as_far_as_the_backward_pass_lasts() -> None:
    """T = forward + max(backward, all-reduce): never more than the sum, never less than either."""
    for item in weak_scaling([2**power for power in range(11)], 64, **WORLD):
        forward = (1 - BACKWARD_FRACTION) * item.compute
        hidden = forward + max(item.compute - forward, item.all_reduce)
        assert item.step_with_overlap == pytest.approx(hidden)
        assert item.step_without_overlap == pytest.approx(item.compute + item.all_reduce)
        assert item.step_with_overlap <= item.step_without_overlap
    swift = weak_scaling([1024], 64, **WORLD | {"link": Link(0.0, 1e15)})[0]
    assert swift.efficiency_with_overlap == pytest.approx(1)


def test_weak_scaling_keeps_the_batch_of_a_rank_and_strong_scaling_that_of_the_run() -> None:
    """A world larger than the global batch is none: the real run would refuse it."""
    ranks = [2**power for power in range(11)]
    weak, strong = weak_scaling(ranks, 64, **WORLD), strong_scaling(ranks, 64, **WORLD)
    assert {item.samples_per_rank for item in weak} == {64}
    assert [item.ranks for item in weak] == ranks
    assert [(item.ranks, item.samples_per_rank) for item in strong] == [
        (2**power, 64 // 2**power) for power in range(7)
    ]
    eight = strong[3]
    expected = COMPUTE(64) / (8 * eight.step_without_overlap)
    assert eight.efficiency_without_overlap == pytest.approx(expected)
    uneven = strong_scaling([3], 64, **WORLD)[0]
    assert uneven.samples_per_rank == math.ceil(64 / 3)
