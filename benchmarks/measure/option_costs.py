"""What a run costs under different options of Convoy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure.results import show
from benchmarks.measure.rounds import collect, ratios, spread
from benchmarks.measure.timed_runs import time_step

WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run the main job, and the one it is compared with."""

    name: str
    against: str
    ranks: int = 1
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    part: int = 1
    """Of the steps that others take it takes one in so many."""


# The name alone: who sets it decides how memory is allocated, here as glibc does by itself.
GIVEN_BACK = {"GLIBC_TUNABLES": ""}
CONVNET = ("--model.name=convnet", "--model.kwargs={}")
EXACT = ("--parallel.reduction=exact", "--parallel.threads=1")
OPTIONS = (
    Option("fast, 1 rank", "fast, 1 rank"),
    Option("exact, 1 rank", "fast, 1 rank", options=EXACT),
    Option("a checkpoint every 50 steps", "fast, 1 rank", options=("--checkpoint.every_steps=50",)),
    Option("freed memory given back", "fast, 1 rank", environment=GIVEN_BACK),
    Option("convnet", "convnet", options=CONVNET, part=10),
    Option("convnet, freed memory given back", "convnet", 1, CONVNET, GIVEN_BACK, part=10),
    Option("fast, 2 ranks", "fast, 2 ranks", ranks=2),
    Option("exact, 2 ranks", "fast, 2 ranks", ranks=2, options=EXACT),
    Option("drift check every 50 steps", "fast, 2 ranks", 2, ("--parallel.drift_every_steps=50",)),
)


def compare_options(*, rounds: int, steps: int, threads: int) -> list[dict[str, Any]]:
    """Time of a step under each option, start-up and evaluation left out, saving left in."""
    found = collect(
        OPTIONS,
        rounds,
        lambda option: step_seconds(option, steps, threads),
        lambda line: print(line, flush=True),
    )
    times = {option.name: values for option, values in zip(OPTIONS, found, strict=True)}
    return [summarise(option, times) for option in OPTIONS]


def step_seconds(option: Option, steps: int, threads: int) -> float:
    """Training time of one step, saving included, from the records of a fresh run."""
    steps = max(steps // option.part, 2)
    return time_step(
        "--config=mnist",
        *option.options,
        steps=steps,
        record_every=min(WARMUP_STEPS, max(steps // 2, 1)),
        warmup_steps=1,
        threads=threads,
        ranks=option.ranks,
        environment=option.environment,
    )


def summarise(option: Option, times: dict[str, list[float]]) -> dict[str, Any]:
    """Median, and the ratio to the option it is compared with, round by round."""
    mine = times[option.name]
    ratio = ratios(mine, times[option.against])
    return {
        "name": option.name,
        "ranks": option.ranks,
        "options": list(option.options),
        "environment": dict(option.environment),
        "step_microseconds": [round(seconds * 1e6, 1) for seconds in mine],
        "median_step_microseconds": round(spread(mine, 9)["median"] * 1e6, 1),
        "against": option.against,
        **{f"ratio_{key}": round(value, 3) for key, value in ratio.items()},
    }


def show_options(results: list[dict[str, Any]]) -> None:
    show(
        "Options of Convoy",
        ("run", "µs a step (median)", "compared with", "ratio", "min", "max"),
        [
            (
                item["name"],
                f"{item['median_step_microseconds']:.0f}",
                item["against"],
                *(f"{item[f'ratio_{key}']:.2f}" for key in ("median", "min", "max")),
            )
            for item in results
        ],
    )
