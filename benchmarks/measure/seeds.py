"""Recipes over many seeds: accuracy or loss on the test set, its course, and training time."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure.processes import run
from benchmarks.measure.results import show
from benchmarks.measure.run_times import read_records
from launch.entry import train_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure_seeds(
    configs: Sequence[str], *, seeds: int, threads: int, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Train every recipe once with every seed from 0 on, the recipes in turn.

    Args:
        configs: Recipes, as `--config` takes them.
        seeds: How many.
        threads: CPU threads of a run.
        overrides: Further arguments of all runs, such as `--data.root=...`.
    """
    runs: dict[str, list[dict[str, Any]]] = {config: [] for config in configs}
    for seed in range(seeds):
        for config in configs:
            runs[config].append(train_seed(config, seed, threads, overrides))
            found = runs[config][-1]
            shown = in_words(found["metric"], found[f"test_{found['metric']}"])
            print(f"{config}, seed {seed}: {shown}", flush=True)
    return [summarise(config, found) for config, found in runs.items()]


def train_seed(config: str, seed: int, threads: int, overrides: Sequence[str]) -> dict[str, Any]:
    """One run: its metrics on the test set, the course of the first on held-out samples, and the
    training time with evaluation left out."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = train_command(
            1,
            f"--config={config}",
            f"--seed={seed}",
            "--name=run",
            f"--output_dir={folder}",
            "--logging.progress=off",
            *overrides,
        )
        finished = run(command, threads=threads)
        summary = json.loads((Path(folder) / "run/summary.json").read_text())
        records = read_records(Path(folder) / "run")
    held_out, tested = ("val", "test") if summary["selected_on"] == "validation" else ("eval",) * 2
    metric = "accuracy" if f"{held_out}/accuracy" in summary else "loss"
    evaluations = [record for record in records if f"{held_out}/{metric}" in record]
    final = {
        key.removeprefix(f"{tested}/"): value
        for key, value in summary.items()
        if key.startswith(f"{tested}/")
    }
    return {
        "seed": seed,
        "metric": metric,
        f"test_{metric}": final[metric],
        "final": final,
        "train_seconds": summary["elapsed_seconds"],
        "steps": summary["step"],
        "peak_memory_bytes": finished.peak_memory_bytes,
        "epochs": [record["epoch"] for record in evaluations],
        "course": [record[f"{held_out}/{metric}"] for record in evaluations],
    }


def summarise(config: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread at the end, and after every epoch that was evaluated."""
    metric = runs[0]["metric"]
    numbers = [key for key, value in runs[0]["final"].items() if isinstance(value, int | float)]
    return {
        "config": Path(config).stem,
        "seeds": len(runs),
        "metric": metric,
        f"test_{metric}": moments([item[f"test_{metric}"] for item in runs]),
        "final": {key: moments([item["final"][key] for item in runs]) for key in numbers},
        "train_seconds": moments([item["train_seconds"] for item in runs]),
        "epochs": runs[0]["epochs"],
        "course": [
            moments(values) for values in zip(*(item["course"] for item in runs), strict=True)
        ],
        "runs": runs,
    }


def in_words(metric: str, value: float) -> str:
    return f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"


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


def show_seeds(found: Sequence[dict[str, Any]]) -> None:
    keys = ("mean", "standard_deviation", "min", "max")
    rows = []
    for item in found:
        metric, seconds = item["metric"], item["train_seconds"]
        values = (in_words(metric, item[f"test_{metric}"][key]) for key in keys)
        rows.append((item["config"], f"test {metric}", *values))
        rows.append(("", "training time (s)", *(f"{seconds[key]:.2f}" for key in keys)))
    title = f"{found[0]['seeds']} seeds"
    show(title, ("recipe", "", "mean", "standard deviation", "min", "max"), rows)


def seeds_figure(found: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy or loss after each epoch: means, and one standard deviation around them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for item in found:
        scale = 100 if item["metric"] == "accuracy" else 1
        means = [scale * point["mean"] for point in item["course"]]
        spread = [scale * point["standard_deviation"] for point in item["course"]]
        (line,) = axes.plot(item["epochs"], means, marker="o", markersize=3, label=item["config"])
        low = [mean - width for mean, width in zip(means, spread, strict=True)]
        high = [mean + width for mean, width in zip(means, spread, strict=True)]
        axes.fill_between(item["epochs"], low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)" if found[0]["metric"] == "accuracy" else "test loss")
    axes.set_title(f"{found[0]['seeds']} seeds: mean, one standard deviation", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
