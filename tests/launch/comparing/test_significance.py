"""Welch's t-test against tables, and against what can be known without any."""

from __future__ import annotations

import math
import random

import pytest

from launch.comparing.significance import incomplete_beta, spread, two_sided, welch


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [
        (12.706, 1, 0.05), (4.303, 2, 0.05), (2.776, 4, 0.05), (2.228, 10, 0.05),
        (63.657, 1, 0.01), (3.169, 10, 0.01), (1.960, 1e9, 0.05), (2.576, 1e9, 0.01),
    ],
)  # fmt: skip
def test_student_t_agrees_with_the_printed_table(t: float, degrees: float, p: float) -> None:
    assert two_sided(t, degrees) == pytest.approx(p, rel=1e-3)
    assert two_sided(-t, degrees) == two_sided(t, degrees)


def test_incomplete_beta_agrees_with_its_closed_forms() -> None:
    """Law: I_x(a, 1) = x^a, I_x(1, b) = 1 - (1-x)^b, and I_x(a, b) + I_1-x(b, a) = 1."""
    draw = random.Random(0)
    for _ in range(300):
        a, b, x = 10 ** draw.uniform(-1, 2), 10 ** draw.uniform(-1, 2), draw.random()
        assert incomplete_beta(a, 1, x) == pytest.approx(x**a, rel=1e-9, abs=1e-12)
        assert incomplete_beta(1, b, x) == pytest.approx(1 - (1 - x) ** b, rel=1e-9, abs=1e-12)
        assert incomplete_beta(a, b, x) + incomplete_beta(b, a, 1 - x) == pytest.approx(1)
    assert incomplete_beta(2, 3, 0) == 0
    assert incomplete_beta(2, 3, 1) == 1


def test_welch_agrees_with_scipy() -> None:
    from scipy import stats

    draw = random.Random(1)
    for sizes in ((2, 2), (3, 5), (10, 4)):
        first = [draw.gauss(0.0, 1) for _ in range(sizes[0])]
        second = [draw.gauss(1.5, 3) for _ in range(sizes[1])]
        ours, theirs = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
        assert ours is not None
        expected = (theirs.statistic, theirs.df, theirs.pvalue)
        assert (ours.t, ours.degrees, ours.p) == pytest.approx(expected, rel=1e-9)


def test_welch_by_hand() -> None:
    """[1, 2, 3] against [2, 4, 6]: t = -2 / sqrt(1/3 + 4/3), degrees = (5/3)^2 / (17/18)."""
    found = welch([1, 2, 3], [2, 4, 6])
    assert found is not None
    assert (found.difference, found.t) == pytest.approx((-2, -2 / math.sqrt(5 / 3)))
    assert found.degrees == pytest.approx((25 / 9) / (17 / 18))


@pytest.mark.parametrize(
    ("first", "second"),
    [([], [1.0, 2.0]), ([1.0], [1.0, 2.0]), ([1, 1], [2, 2]), ([1, math.inf], [1, 2])],
)
def test_without_spread_there_is_no_test(first: list[float], second: list[float]) -> None:
    assert welch(first, second) is None
    assert welch(second, first) is None


def test_under_the_null_hypothesis_one_in_twenty_is_significant() -> None:
    """Law: p below 0.05 happens in about 5 % of comparisons of equals."""
    draw = random.Random(2)
    results = [
        welch([draw.gauss(0, 1) for _ in range(6)], [draw.gauss(0, 1) for _ in range(6)])
        for _ in range(2000)
    ]
    share = sum(result is not None and result.p < 0.05 for result in results) / len(results)
    assert 0.03 < share < 0.07


def test_the_deviation_is_that_of_a_sample() -> None:
    found = spread([1, 2, 3, 4])
    assert (found.mean, found.count) == (2.5, 4)
    assert found.std == pytest.approx(math.sqrt(5 / 3))
    assert spread([7.0]).std is None
