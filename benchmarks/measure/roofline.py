"""Convoy's step against what it cannot be faster than, measured in the same rounds."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.measure.contenders import Settings, named
from benchmarks.measure.peers import measure
from benchmarks.measure.processes import run
from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, spread, steady
from launch.entry import TRAIN, torchrun

FLOORS = TRAIN.parents[1] / "benchmarks" / "floors.py"
STEPS = (("convoy", "fp32", 1), ("convoy-bf16", "bf16", 1), ("convoy-2-ranks", "fp32", 2))
"""Mode of Convoy, the type of its products, and its ranks."""


def measure_roofline(settings: Settings, rounds: int, *, series: int) -> dict[str, Any]:
    """Floors and steps in interleaved rounds; `series` is how often floors.py times each floor."""

    def one(name: str) -> dict[str, Any]:
        print(name, file=sys.stderr, flush=True)
        if not name.startswith("floors"):
            return measure(named(name), settings)
        return measure_floors(settings, int(name.split()[1]), series)

    names = ["floors 1", "floors 2", *(name for name, _, _ in STEPS)]
    found = collect(names, rounds, one, lambda line: print(line, file=sys.stderr))
    values = dict(zip(names, found, strict=True))
    floors = {ranks: values[f"floors {ranks}"] for ranks in (1, 2)}
    steps = [
        describe_step(name, dtype, floors[ranks], values[name]) for name, dtype, ranks in STEPS
    ]
    return {
        "floors": summarise(floors[1]),
        "floors_2_ranks": summarise(floors[2]),
        "steps": steps,
        "points": roofline_points(summarise(floors[1]), steps),
    }


def measure_floors(settings: Settings, ranks: int, series: int) -> dict[str, Any]:
    command = torchrun(ranks) if ranks > 1 else [sys.executable]
    options = (f"--threads={settings.threads}", f"--device={settings.device}", f"--series={series}")
    finished = run([*command, str(FLOORS), *options], threads=settings.threads_per_rank(ranks))
    return finished.last_json()


def describe_step(
    name: str, dtype: str, floors: list[dict[str, Any]], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """A mode's step and its floors; the ratio is taken round by round."""
    parts = {"products": f"products_{dtype}_microseconds", "Adam": "adam_microseconds"}
    if "all_reduce_microseconds" in floors[0]:
        parts["all-reduce"] = "all_reduce_microseconds"
    micros = [steady(run["train_seconds"]) * run["epochs"] / run["steps"] * 1e6 for run in runs]
    sums = [sum(floor[key] for key in parts.values()) for floor in floors]
    ratio = spread([step / floor for step, floor in zip(micros, sums, strict=True)])
    return {
        "name": name,
        "title": named(name).title,
        "dtype": dtype,
        "floor_microseconds": {
            part: spread([floor[key] for floor in floors], 1)["median"]
            for part, key in parts.items()
        },
        "step_microseconds": spread(micros, 1),
        "ratio_to_floor": ratio,
        "times_floor": ratio["median"],
    }


def roofline_points(floors: dict[str, Any], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rate and intensity of the products, of Adam, and of the steps on one rank.

    The bytes are the least that must move if nothing stays in a cache: every operand once.
    """
    flops = floors["products_flops"]["median"] + floors["adam_flops"]["median"]
    work = {
        f"products, {dtype}": (
            floors["products_flops"]["median"],
            floors[f"products_{dtype}_bytes"]["median"],
            floors[f"products_{dtype}_microseconds"]["median"],
        )
        for dtype in ("fp32", "bf16")
    }
    work["Adam"] = tuple(
        floors[f"adam_{key}"]["median"] for key in ("flops", "bytes", "microseconds")
    )
    for step in steps:
        if "all-reduce" not in step["floor_microseconds"]:
            moved = floors[f"products_{step['dtype']}_bytes"]["median"]
            moved += floors["adam_bytes"]["median"]
            work[step["title"]] = (flops, moved, step["step_microseconds"]["median"])
    return [
        {
            "title": title,
            "flops_per_second": round(operations / micros * 1e6),
            "flops_per_byte": round(operations / moved, 3),
        }
        for title, (operations, moved, micros) in work.items()
    ]


def summarise(floors: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: spread([floor[key] for floor in floors], 1) for key in floors[0]}


def show_roofline(result: dict[str, Any]) -> None:
    rows = [
        (
            step["title"],
            range_text(step["step_microseconds"], 0),
            ", ".join(f"{part} {value:.0f}" for part, value in step["floor_microseconds"].items()),
            range_text(step["ratio_to_floor"]),
        )
        for step in result["steps"]
    ]
    show("Steps against their floors", ("run", "µs a step", "floors (µs)", "times floor"), rows)
    rates = result["floors"]
    print(
        f"Copy {rates['bandwidth_bytes_per_second']['median'] / 1e9:.1f} GB/s, products of large "
        f"matrices {rates['peak_fp32_flops_per_second']['median'] / 1e9:.0f} Gflop/s in fp32 and "
        f"{rates['peak_bf16_flops_per_second']['median'] / 1e9:.0f} in bf16"
    )
