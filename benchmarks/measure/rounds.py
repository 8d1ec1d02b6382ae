"""Interleaved rounds, and the statistics of what they measured."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def interleaved(
    items: Sequence[T], rounds: int, seconds: float | None = None
) -> Iterator[tuple[int, T]]:
    """`(round, item)` for every item once a round, each round beginning with the next item.

    A machine that drifts slows all contenders alike, and nobody always follows the same one.
    Nothing more is begun when so many `seconds` have passed.
    """
    end = time.monotonic() + (math.inf if seconds is None else seconds)
    for number in range(rounds):
        shift = number % len(items) if items else 0
        for item in [*items[shift:], *items[:shift]]:
            if time.monotonic() >= end:
                return
            yield number, item


def complete_rounds(found: Sequence[Sequence[T]]) -> list[list[T]]:
    """The measurements of each item from the rounds that every item was in; all, if there is
    none."""
    complete = min(map(len, found), default=0)
    return [list(values[: complete or None]) for values in found]


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest value, rounded to so many digits; 0: to integers."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: round(value, digits or None) for key, value in found.items()}


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of mine / theirs, round by round: what slows a round as a whole cancels."""
    return spread([a / b for a, b in zip(mine, theirs, strict=True)])


def steady(train_seconds: Sequence[float]) -> float:
    """Median time of an epoch; the first one warms up and only counts if it is alone."""
    return statistics.median(train_seconds[1:] or train_seconds)


def collect(
    items: Sequence[T],
    rounds: int,
    measure: Callable[[T], Any],
    say: Callable[[str], None],
    seconds: float | None = None,
    seen: Callable[[list[list[Any]]], None] = lambda found: None,
) -> list[list[Any]]:
    """Measurements of every item, one per round; `say` is told when a round is done, and `seen`
    after every measurement what there is.

    With a limit of `seconds` there may be fewer, and none of some items.
    """
    found: dict[int, list[Any]] = {index: [] for index in range(len(items))}
    for number, index in interleaved(range(len(items)), rounds, seconds):
        found[index].append(measure(items[index]))
        seen(complete_rounds(list(found.values())))
        if all(len(values) == number + 1 for values in found.values()):
            say(f"round {number + 1} of {rounds} done")
    return complete_rounds(list(found.values()))
