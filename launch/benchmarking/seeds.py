"""A recipe over many seeds: test accuracy and training time as mean and spread."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.benchmarking.processes import run
from launch.benchmarking.results import show
from launch.entry import train_command


def measure_seeds(config: str, *, seeds: int, threads: int) -> dict[str, Any]:
    """Train a recipe once for every seed from 0 on, one after the other."""
    runs = []
    for seed in range(seeds):
        runs.append(train_seed(config, seed, threads))
        print(f"{config}, seed {seed}: {runs[-1]['test_accuracy']:.2%}", flush=True)
    keys = ("test_accuracy", "train_seconds")
    return {
        "config": config,
        "seeds": seeds,
        **{key: moments([item[key] for item in runs]) for key in keys},
        "runs": runs,
    }


def train_seed(config: str, seed: int, threads: int) -> dict[str, Any]:
    """One run: final test accuracy, and training time with evaluation left out."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = train_command(
            1,
            f"--config={config}",
            f"--seed={seed}",
            "--name=run",
            f"--output_dir={folder}",
            "--logging.progress=off",
        )
        finished = run(command, threads=threads)
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
    return {
        "seed": seed,
        "test_accuracy": summary["eval/accuracy"],
        "train_seconds": summary["elapsed_seconds"],
        "steps": summary["step"],
        "peak_memory_bytes": finished.peak_memory_bytes,
    }


def moments(values: Sequence[float]) -> dict[str, float]:
    """Mean, its standard error, sample standard deviation, and range."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    found = {
        "mean": statistics.fmean(values),
        "standard_error": deviation / math.sqrt(len(values)),
        "standard_deviation": deviation,
        "min": min(values),
        "max": max(values),
    }
    return {key: round(value, 6) for key, value in found.items()}


def show_seeds(found: dict[str, Any]) -> None:
    accuracy, seconds = found["test_accuracy"], found["train_seconds"]
    rows = [
        (
            "test accuracy",
            *(f"{accuracy[key]:.2%}" for key in ("mean", "standard_deviation", "min", "max")),
        ),
        (
            "training time (s)",
            *(f"{seconds[key]:.2f}" for key in ("mean", "standard_deviation", "min", "max")),
        ),
    ]
    title = f"{found['config']} over {found['seeds']} seeds"
    show(title, ("", "mean", "standard deviation", "min", "max"), rows)
