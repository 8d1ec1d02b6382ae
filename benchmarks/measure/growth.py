"""How the cost grows: samples per second of Convoy against batch size, width and ranks."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.processes import run
from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, spread
from benchmarks.measure.run_times import seconds_per_step
from launch.entry import train_command

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
        return samples_per_second(point, steps=steps, threads=threads, device=device)

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


def samples_per_second(point: Point, *, steps: int, threads: int, device: str) -> float:
    """Rate of a fresh run after its first quarter; no evaluation, no checkpoint in between."""
    quarter = max(steps // 4, 1)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = train_command(
            point.ranks,
            "--config=mnist",
            "--name=run",
            f"--output_dir={folder}",
            f"--model.kwargs={json.dumps({'hidden': point.hidden, 'dropout': 0.2})}",
            f"--train.global_batch_size={point.batch}",
            "--train.epochs=1000",
            f"--train.max_steps={steps}",
            f"--parallel.device={device}",
            "--data.drop_last=true",
            "--evaluate.every_epochs=null",
            "--checkpoint.every_epochs=null",
            f"--logging.every_steps={quarter}",
            "--logging.progress=off",
        )
        run(command, threads=max(threads // point.ranks, 1))
        return point.batch / seconds_per_step(Path(folder) / "run", warmup_steps=quarter)


def show_growth(series: Sequence[dict[str, Any]]) -> None:
    rows = [
        (item["title"], str(point["value"]), range_text(point["samples_per_second"], 0))
        for item in series
        for point in item["points"]
    ]
    show("How the cost grows", ("axis", "value", "samples per second (median, range)"), rows)
