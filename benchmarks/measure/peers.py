"""Convoy against its peers: the same network, data, batch, optimizer, epochs and threads."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.contenders import Contender, Settings
from benchmarks.measure.processes import CommandFailed, run
from benchmarks.measure.results import range_text, show
from benchmarks.measure.rounds import complete_rounds, interleaved, ratios, spread, steady
from benchmarks.measure.run_times import read_run
from configs.errors import InputError

Run = dict[str, Any]
NO_TIME = "no time was left for it"


def measure(contender: Contender, settings: Settings) -> Run:
    """One run of a contender, with the keys of a peer's JSON line.

    Raises:
        CommandFailed: If it fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = contender.command(settings, Path(folder))
        finished = run(command, threads=settings.threads_per_rank(contender.ranks))
        if contender.is_convoy:
            found = read_run(Path(folder) / "run", started_at=finished.started_at)
        else:
            found = finished.last_json()
    return found | {
        "name": contender.name,
        "threads": settings.threads,
        "ranks": contender.ranks,
        "peak_memory_bytes": finished.peak_memory_bytes,
    }


def compare(
    contenders: Sequence[Contender],
    settings: Settings,
    rounds: int,
    seconds: float | None = None,
    seen: Callable[[list[dict[str, Any]]], None] = lambda results: None,
) -> list[dict[str, Any]]:
    """Run all contenders in interleaved rounds; one result each, also for those left out.

    A contender whose package is missing is skipped, one that fails is out from then on: its result
    says why. When `seconds` have passed nobody starts any more. `seen` is given the results so far
    after every run.

    Raises:
        InputError: If nobody is left to run.
    """
    reasons = {item.name: reason for item in contenders if (reason := item.missing())}
    if len(reasons) == len(contenders):
        raise InputError("--only", expected="a contender that can run", remedy=_list(reasons))
    status = dict.fromkeys(reasons, "skipped")
    runs: dict[str, list[Run]] = {item.name: [] for item in contenders}

    def results() -> list[dict[str, Any]]:
        measured = [name for name in runs if name not in status]
        complete = complete_rounds([runs[name] for name in measured])
        whole = runs | dict(zip(measured, complete, strict=True))
        late = {name for name in measured if not whole[name]}
        return [
            summarise(
                item,
                whole,
                status="skipped" if item.name in late else status.get(item.name, "measured"),
            )
            | {"reason": reasons.get(item.name, NO_TIME if item.name in late else None)}
            for item in contenders
        ]

    for number, item in interleaved(contenders, rounds, seconds):
        if item.name in status:
            continue
        print(f"round {number + 1} of {rounds}: {item.title}", file=sys.stderr, flush=True)
        try:
            runs[item.name].append(measure(item, settings))
        except CommandFailed as error:
            status[item.name], reasons[item.name] = "failed", str(error)
            print(f"{item.title} failed: {error}", file=sys.stderr, flush=True)
        seen(results())
    return results()


def summarise(
    contender: Contender, runs: dict[str, list[Run]], *, status: str = "measured"
) -> dict[str, Any]:
    """Median and spread over the rounds, and the ratio to the contender it is compared with."""
    facts: dict[str, Any] = {
        "name": contender.name,
        "title": contender.title,
        "status": status,
        "program": contender.program or "launch/train.py",
        "options": list(contender.options),
        "ranks": contender.ranks,
    }
    if status != "measured":
        return facts
    mine = runs[contender.name]
    seconds = [steady(run["train_seconds"]) for run in mine]
    facts |= {
        "extrapolated": mine[0]["extrapolated"],
        "epoch_seconds": spread(seconds),
        "first_epoch_seconds": spread([run["train_seconds"][0] for run in mine]),
    }
    for key, digits in (
        ("compile_seconds", 3),
        ("first_step_seconds", 3),
        ("test_accuracy", 4),
        ("train_loss", 4),
        ("peak_memory_bytes", 0),
    ):
        facts[key] = spread([run[key] for run in mine], digits)
    if all("test_loss" in run for run in mine):
        facts["test_loss"] = spread([run["test_loss"] for run in mine], 4)
    facts["against"] = contender.against
    theirs = [steady(run["train_seconds"]) for run in runs.get(contender.against, [])]
    facts["ratio"] = ratios(seconds, theirs) if len(theirs) == len(seconds) else None
    facts["runs"] = mine
    return facts


def show_peers(results: Sequence[dict[str, Any]]) -> None:
    """One line each: time of an epoch, its ratio to Convoy, accuracy, memory, start-up."""
    rows = []
    for item in results:
        if item["status"] != "measured":
            why = (item["reason"] or "").splitlines()[0]
            rows.append((item["title"], f"{item['status']}: {why}", *[""] * 6))
            continue
        mark = " *" if item["extrapolated"] else ""
        rows.append(
            (
                item["title"] + mark,
                range_text(item["epoch_seconds"]),
                range_text(item["ratio"]),
                f"{item['compile_seconds']['median']:.1f}",
                f"{item['test_accuracy']['median']:.2%}{mark}",
                f"{item['train_loss']['median']:.3f}",
                f"{item['peak_memory_bytes']['median'] / 2**20:.0f}",
                f"{item['first_step_seconds']['median']:.1f}",
            )
        )
    show(
        "Training time of an epoch (median and range over the rounds)",
        (
            "contender",
            "s an epoch",
            "times Convoy",
            "compiling (s)",
            "test accuracy",
            "train loss",
            "peak MiB",
            "first step (s)",
        ),
        rows,
    )
    if any(item.get("extrapolated") for item in results):
        print("* trained on a few steps only: its time is extrapolated, its accuracy means nothing")


def show_text(results: Sequence[dict[str, Any]], tokens: int) -> None:
    """One line each: tokens a second, the ratio of times to Convoy's, and what was learned.

    Args:
        results: Of `compare`.
        tokens: Those of an epoch.
    """
    rows = []
    for item in results:
        if item["status"] != "measured":
            why = (item["reason"] or "").splitlines()[0]
            rows.append((item["title"], f"{item['status']}: {why}", *[""] * 5))
            continue
        rows.append(
            (
                item["title"],
                f"{tokens / item['epoch_seconds']['median']:,.0f}",
                range_text(item["epoch_seconds"]),
                range_text(item["ratio"]),
                f"{item['test_loss']['median']:.4f}",
                f"{item['peak_memory_bytes']['median'] / 2**20:.0f}",
                f"{item['first_step_seconds']['median']:.1f}",
            )
        )
    title = "Training of the language model (median and range over the rounds)"
    columns = ("contender", "tokens/s", "s an epoch", "times Convoy", "test loss", "peak MiB")
    show(title, (*columns, "first step (s)"), rows)


def _list(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) + "."
