"""What it costs to look for numbers that are not finite: the main job with and without, in turn."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trainer.session
from benchmarks.measure.results import show
from configs.load import load_config
from trainer.loop import Run
from trainer.ranks.stop_signals import StopRequest


@dataclass(slots=True)
class InTurn:
    """In place of a run's check: every other epoch nothing is looked at."""

    run: Run
    culprit_of: Any
    spent: list[float] = field(default_factory=list)
    """Seconds of each look."""
    began: dict[int, float] = field(default_factory=dict)
    """When each epoch's evaluation began, by the epochs that had ended."""

    def culprit(self) -> str | None:
        ended = self.run.plan.epoch_schedule.epochs_ended(self.run.state.progress.global_batches)
        now = time.perf_counter()
        if ended is not None:
            self.began.setdefault(ended, now)
            if ended % 2:
                return None
        found: str | None = self.culprit_of()
        self.spent.append(time.perf_counter() - now)
        return found


PAIRS = 4
"""Of epochs in a round."""


def benchmark_finite(
    arguments: argparse.Namespace, write: Callable[[argparse.Namespace, dict[str, Any]], None]
) -> int:
    """Measure, show and write."""
    found = measure_finite(pairs=PAIRS * arguments.rounds, threads=arguments.threads)
    show_finite(found)
    write(arguments, found)
    return 0


def measure_finite(*, pairs: int, threads: int) -> dict[str, Any]:
    """Seconds from one evaluation to the next, saving and evaluating included, with the check and
    without it in turn; and the seconds of the check alone.

    Args:
        pairs: Of epochs, besides one that warms up.
        threads: CPU threads.
    """
    session: Any = trainer.session  # whose `build` is replaced
    build = session.build
    found: list[InTurn] = []

    def build_watched(*arguments: Any) -> Run:
        run: Run = build(*arguments)
        found.append(InTurn(run, run.log.finite.culprit))
        run.log.finite = found[0]  # type: ignore[assignment]
        return run

    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        options = [
            "--config=mnist",
            f"--output_dir={folder}",
            f"--train.epochs={2 * pairs + 2}",
            f"--parallel.threads={threads}",
            "--parallel.device=cpu",
            "--logging.progress=off",
        ]
        config = load_config(options, prog="benchmark", description="")
        session.build = build_watched
        try:
            with session.joined(config) as runtime:
                session.train_to_end(config, runtime, StopRequest())
        finally:
            session.build = build
    return summarise(found[0].began, found[0].spent)


def summarise(began: dict[int, float], spent: list[float]) -> dict[str, Any]:
    """Ratios of neighbouring epochs, and the share of an epoch that looking takes.

    The first pair warms up.

    Args:
        began: When the evaluation after so many epochs began; it is after even ones that a run
            looks.
        spent: Seconds of each look.
    """
    spans = {n: began[n + 1] - began[n] for n in began if n + 1 in began and n > 1}
    looked = {n: seconds for n, seconds in spans.items() if n % 2 == 0}
    ratios = [seconds / spans[n + 1] for n, seconds in looked.items() if n + 1 in spans]
    epoch = statistics.median(spans.values())
    looks = len(spent) / max(sum(n % 2 == 0 for n in began), 1)
    return {
        "epoch_seconds": round(epoch, 4),
        "check_microseconds": round(statistics.median(spent) * 1e6, 1),
        "checks_per_epoch": round(looks, 2),
        "share_of_an_epoch": round(statistics.median(spent) * looks / epoch, 6),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_min": round(min(ratios), 4),
        "ratio_max": round(max(ratios), 4),
        "pairs": len(ratios),
    }


def show_finite(found: dict[str, Any]) -> None:
    show(
        "Looking for numbers that are not finite",
        ("what", "value"),
        [
            ("an epoch", f"{found['epoch_seconds']:.3f} s"),
            ("a look", f"{found['check_microseconds']:.0f} µs"),
            ("looks in an epoch", f"{found['checks_per_epoch']:g}"),
            ("their share of it", f"{100 * found['share_of_an_epoch']:.3f} %"),
            (
                f"an epoch with them against one without, {found['pairs']} pairs",
                f"{found['ratio_median']:.3f} ({found['ratio_min']:.3f} to "
                f"{found['ratio_max']:.3f})",
            ),
        ],
    )
