"""What a start costs that has to compile: cold and warm, whole and block by block."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.processes import run
from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import collect, ratios, spread
from benchmarks.measure.run_times import read_records
from benchmarks.measure.timed_runs import NOTHING_BUT_STEPS
from launch.entry import train_command

DEPTH, QUICK_DEPTH = 12, 2
STARTS = ("cold", "warm")
"""With an empty cache beside the runs, and with what the start before left there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to compile."""

    name: str
    options: tuple[str, ...]


WAYS = (
    Way(name="whole", options=("--compile.regional=false",)),
    Way(name="block by block", options=("--compile.regional=true",)),
)


def measure_starts(
    *, rounds: int, threads: int, device: str, quick: bool, seconds: float | None = None
) -> list[dict[str, Any]]:
    """A cold and a warm start each way in every round, of a language model of equal blocks."""
    depth = QUICK_DEPTH if quick else DEPTH
    found = collect(
        WAYS,
        rounds,
        lambda way: start_twice(way, depth=depth, threads=threads, device=device),
        functools.partial(print, file=sys.stderr),
        seconds,
    )
    return [summarise(way, depth, runs) for way, runs in zip(WAYS, found, strict=True) if runs]


def start_twice(way: Way, *, depth: int, threads: int, device: str) -> dict[str, dict[str, float]]:
    """Start a run in a new folder, and then another one beside it, of three steps each."""
    print(f"{way.name}, {depth} blocks", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        found = {}
        for start in STARTS:
            command = train_command(
                1,
                "--config=gpt_chars",
                f"--model.kwargs={json.dumps({'depth': depth, 'width': 128, 'heads': 4})}",
                f"--output_dir={folder}",
                f"--name={start}",
                "--train.max_steps=3",
                "--schedule.warmup_steps=0",
                f"--parallel.device={device}",
                "--compile.enabled=true",
                *way.options,
                *NOTHING_BUT_STEPS,
                "--logging.every_steps=1",
                "--logging.progress=off",
            )
            finished = run(command, threads=threads)
            found[start] = read_start(Path(folder) / start, started_at=finished.started_at)
        return found


def read_start(folder: Path, *, started_at: float) -> dict[str, float]:
    """Seconds from the command to the record of the first step, and what the compiler did."""
    first = next(record for record in read_records(folder) if "train/loss" in record)
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "first_step_seconds": round(first["time"] - started_at, 3),
        **{
            f"compile_{name}": summary[f"compile/{name}"]
            for name in ("seconds", "graph_breaks", "recompilations")
        },
    }


def summarise(way: Way, depth: int, runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Spread of cold and warm starts, and of warm over cold in the same round."""
    facts: dict[str, Any] = {"way": way.name, "blocks": depth, "runs": list(runs)}
    for key in ("first_step_seconds", "compile_seconds"):
        cold, warm = ([found[start][key] for found in runs] for start in STARTS)
        facts[key] = {
            "cold": spread(cold, 2),
            "warm": spread(warm, 2),
            "warm_over_cold": ratios(warm, cold),
        }
    return facts


def show_starts(results: Sequence[dict[str, Any]]) -> None:
    """One line for each way: seconds to the first step and of the compiler, cold and warm."""
    keys = ("first_step_seconds", "compile_seconds")
    show(
        f"Starts of a compiled language model of {results[0]['blocks']} blocks",
        (
            "compiled",
            *(
                f"{what}, {start}"
                for what in ("first step (s)", "compiling (s)")
                for start in STARTS
            ),
            "first step, warm / cold",
        ),
        [
            (
                item["way"],
                *(range_text(item[key][start]) for key in keys for start in STARTS),
                range_text(item["first_step_seconds"]["warm_over_cold"]),
            )
            for item in results
        ],
    )
