"""What a run costs under different options: interleaved rounds, medians and ratios.

    python launch/benchmark.py --rounds 5 --output benchmarks/results/options.json

Every round trains the main job for some steps once per contender, in turn, so that a machine that
drifts slows all of them. A figure is wall time per step between two records of the run itself, with
start-up and evaluation left out and saving left in.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.entry import run_command, train_command

WARMUP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the main job, and the one it is compared with."""

    name: str
    against: str
    ranks: int = 1
    options: tuple[str, ...] = ()


EXACT = ("--parallel.reduction=exact", "--parallel.threads=1")
CONTENDERS = (
    Contender("fast, 1 rank", "fast, 1 rank"),
    Contender("exact, 1 rank", "fast, 1 rank", options=EXACT),
    Contender(
        "a checkpoint every 50 steps", "fast, 1 rank", options=("--checkpoint.every_steps=50",)
    ),
    Contender("fast, 2 ranks", "fast, 2 ranks", ranks=2),
    Contender("exact, 2 ranks", "fast, 2 ranks", ranks=2, options=EXACT),
    Contender(
        "drift check every 50 steps", "fast, 2 ranks", 2, ("--parallel.drift_every_steps=50",)
    ),
)


def main(argv: Sequence[str]) -> int:
    """Measure, print a table, and write the figures with the machine they come from."""
    parser = argparse.ArgumentParser(
        prog="launch/benchmark.py", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of every contender")
    parser.add_argument("--steps", type=int, default=700, help="optimizer steps of every run")
    parser.add_argument("--output", type=Path, help="write the result to this JSON file")
    arguments = parser.parse_args(argv)
    times: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    for round_ in range(arguments.rounds):
        shift = round_ % len(CONTENDERS)
        for contender in CONTENDERS[shift:] + CONTENDERS[:shift]:
            times[contender.name].append(step_seconds(contender, arguments.steps))
        print(f"round {round_ + 1} of {arguments.rounds} done", flush=True)
    results = summarise(times)
    show(results)
    if arguments.output is not None:
        write(arguments.output, arguments.rounds, arguments.steps, results)
    return 0


def step_seconds(contender: Contender, steps: int) -> float:
    """Wall time of one step, from the records of a fresh run."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = train_command(
            contender.ranks,
            "--config=mnist",
            "--name=run",
            f"--output_dir={folder}",
            f"--train.max_steps={steps}",
            f"--logging.every_steps={WARMUP_STEPS}",
            "--logging.progress=off",
            *contender.options,
        )
        threads = max((os.cpu_count() or 1) // contender.ranks, 1)
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{contender.name} failed:\n{done.stderr[-3000:]}")
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "train/loss" in record]
    first, last = records[0], records[-1]
    return float((last["time"] - first["time"]) / (last["step"] - first["step"]))


def summarise(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Medians, and the ratio to the contender each is compared with, round by round."""
    results = []
    for contender in CONTENDERS:
        mine, theirs = times[contender.name], times[contender.against]
        ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
        results.append(
            {
                "name": contender.name,
                "ranks": contender.ranks,
                "options": list(contender.options),
                "step_microseconds": [round(seconds * 1e6, 1) for seconds in mine],
                "median_step_microseconds": round(statistics.median(mine) * 1e6, 1),
                "against": contender.against,
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_min": round(min(ratios), 3),
                "ratio_max": round(max(ratios), 3),
            }
        )
    return results


def show(results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("run", "µs a step (median)", "compared with", "ratio", "min", "max"):
        table.add_column(heading)
    for item in results:
        ratios = (f"{item[f'ratio_{key}']:.2f}" for key in ("median", "min", "max"))
        table.add_row(
            item["name"], f"{item['median_step_microseconds']:.0f}", item["against"], *ratios
        )
    Console().print(table)


def write(path: Path, rounds: int, steps: int, results: list[dict[str, Any]]) -> None:
    from trainer.run_directory import describe_machine

    content = {
        "command": f"python launch/benchmark.py --rounds {rounds} --steps {steps}",
        "environment": describe_machine(),
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
