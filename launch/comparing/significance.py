"""Means, spreads, and Welch's t-test: is a difference between two groups of runs more than luck?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SIGNIFICANT = 0.05
_TINY, _MAX_TERMS, _PRECISION = 1e-300, 10_000, 1e-15


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation; one value, or infinite ones, have none."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True, slots=True)
class Welch:
    """Result of Welch's t-test."""

    difference: float
    t: float
    degrees: float
    p: float


def spread(values: Sequence[float]) -> Spread:
    finite = all(map(math.isfinite, values))
    std = statistics.stdev(values) if len(values) > 1 and finite else None
    return Spread(statistics.fmean(values), std, len(values))


def welch(first: Sequence[float], second: Sequence[float]) -> Welch | None:
    """Two-sided t-test of equal means, for groups whose variances may differ.

    None with fewer than two values in a group, with infinite ones, or if no value differs from its
    group's mean: then there is no spread to judge the difference by. Degrees of freedom are
    Satterthwaite's, https://en.wikipedia.org/wiki/Welch%27s_t-test.
    """
    if min(len(first), len(second)) < 2:
        return None
    a, b = spread(first), spread(second)
    if a.std is None or b.std is None or a.std + b.std == 0:
        return None
    errors = a.std**2 / a.count, b.std**2 / b.count
    error = sum(errors)
    if error == 0:  # the squares of very small deviations
        return None
    degrees = error**2 / (errors[0] ** 2 / (a.count - 1) + errors[1] ** 2 / (b.count - 1))
    t = (a.mean - b.mean) / math.sqrt(error)
    return Welch(a.mean - b.mean, t, degrees, two_sided(t, degrees))


def two_sided(t: float, degrees: float) -> float:
    """P(|T| >= |t|) for Student's distribution with so many degrees of freedom."""
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for 0 <= x <= 1.

    By its continued fraction, evaluated after Lentz (Press et al., Numerical Recipes, 6.4).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, its mirror image does not
        return 1 - incomplete_beta(b, a, 1 - x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    return front * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return value


def _away_from_zero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY
