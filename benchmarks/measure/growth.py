"""How the cost grows: samples per second of Convoy against batch size, width and ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, spread
from benchmarks.measure.timed_runs import time_mlp_step

BATCHES = (16, 64, 256, 1024, 4096)
WIDTHS = (64, 128, 256, 512, 1024)
RANKS = (1, 2, 4, 8, 16, 32, 64)
RANKS_BATCHES = (64, 1024)
SAMPLES, FEWEST_STEPS, MOST_STEPS = 120_000, 60, 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: where it lies on its axis, and what it is."""

    axis: str
    value: int
    batch: int = 64
    hidden: tuple[int, ...] = (256, 128)
    ranks: int = 1


def points(threads: int) -> list[Point]:
    """Every point of every axis; never more ranks than threads."""
    batches = [Point(axis="batch size", value=batch, batch=batch) for batch in BATCHES]
    widths = [
        Point(axis="width of the first hidden layer", value=width, hidden=(width, width // 2))
        for width in WIDTHS
    ]
    ranks = [
        Point(axis=f"ranks, batch {batch}", value=number, batch=batch, ranks=number)
        for batch in RANKS_BATCHES
        for number in RANKS
        if number <= threads
    ]
    return [*batches, *widths, *ranks]


def measure_growth(
    chosen: Sequence[Point], *, rounds: int, threads: int, device: str, quick: bool
) -> list[dict[str, Any]]:
    """One series per axis, each point with the spread of its rate over the rounds."""
    shorter = 4 if quick else 1

    def measure(point: Point) -> float:
        print(f"{point.axis}: {point.value}", file=sys.stderr, flush=True)
        steps = min(max(SAMPLES // point.batch, FEWEST_STEPS), MOST_STEPS) // shorter
        seconds = time_mlp_step(
            point.hidden,
            point.batch,
            steps=steps,
            device=device,
            threads=threads,
            ranks=point.ranks,
        )
        return point.batch / seconds

    found = collect(chosen, rounds, measure, lambda line: print(line, file=sys.stderr))
    series: dict[str, dict[str, Any]] = {}
    for point, rates in zip(chosen, found, strict=True):
        axis = series.setdefault(point.axis, {"title": point.axis, "points": []})
        axis["points"].append(
            {
                "value": point.value,
                "batch_size": point.batch,
                "hidden": list(point.hidden),
                "ranks": point.ranks,
                "samples_per_second": spread(rates, 0),
            }
        )
    return list(series.values())


def show_growth(series: Sequence[dict[str, Any]]) -> None:
    rows = [
        (item["title"], str(point["value"]), range_text(point["samples_per_second"], 0))
        for item in series
        for point in item["points"]
    ]
    show("How the cost grows", ("axis", "value", "samples per second (median, range)"), rows)
