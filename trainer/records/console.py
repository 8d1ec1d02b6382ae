"""Records on the screen: a live display on a terminal, or plain lines."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Literal

from configs.visible import plain, visible
from trainer.records.sinks import Record, RunFacts, Sink

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 2.0
"""Seconds between two plain lines about training; evaluations are always printed."""
PERCENTAGES = (
    *("accuracy", "label_accuracy", "token_accuracy", "f1", "precision", "recall", "exact_match"),
)
"""Metrics that are printed as percentages."""
NO_CURSOR = ("dumb", "unknown")
"""Terminals (TERM) on which rich shows nothing before the end."""
SLOW = 1.5
"""Times the median step of all ranks, from which on the slowest rank is named."""
BESIDE = 30
"""Columns of a short progress bar with its epoch, slash, time left and the spaces between them."""
EVALUATIONS = {
    "eval": ("test", ""),
    "val": ("validation", ""),
    "test": ("test", "  final weights"),
    "test_best": ("test", "  best weights on validation"),
}
"""Of each group of metrics: what they were measured on, and what else to say of them."""


def build_console(progress: Literal["auto", "rich", "plain", "off"]) -> list[Sink]:
    """The display that `logging.progress` asks for; auto: live on a terminal that can move its
    cursor, else plain lines."""
    if progress == "off":
        return []
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in NO_CURSOR
    live = progress == "rich" or (progress == "auto" and terminal)
    return [RichSink() if live else PlainSink()]


class RichSink:
    """A progress bar with epoch, loss, score, samples/s and time left, below the evaluations."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.facts: RunFacts | None = None

    def start(self, facts: RunFacts) -> None:
        self.facts = facts
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]:.2f}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),  # only the bar may shrink
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            expand=True,
            redirect_stderr=sys.stderr.isatty(),  # the log moves the bar instead of joining it
        )
        self.task = self.progress.add_task(
            "train", total=facts.total_steps, completed=facts.first_step, epoch=0.0, metrics=""
        )
        self.progress.start()

    def record(self, record: Record) -> None:
        assert self.progress is not None
        assert self.task is not None
        assert self.facts is not None
        for line in evaluation_lines(record, self.facts):
            self.progress.console.print(plain(line))
        if "train/loss" in record:
            parts = [
                f"loss {record['train/loss']:.4f}",
                *_score(record, self.facts),
                *_pace(record),
            ]
            room = self.progress.console.width - BESIDE - 2 * len(str(self.facts.total_steps))
            while len("  ".join(parts)) > room and len(parts) > 1:
                parts.pop()
            self.progress.update(
                self.task,
                completed=record["step"],
                epoch=record["epoch"],
                metrics="  ".join(parts),
            )

    def finish(self, status: str) -> None:
        if self.progress is not None:
            self.progress.stop()


class PlainSink:
    """A line about training every few seconds and one for each evaluation, for log files."""

    def __init__(self) -> None:
        self.facts: RunFacts | None = None
        self.last = float("-inf")
        self.first: Record | None = None
        """The first of this start: from it on the pace is taken that the time left follows from."""

    def start(self, facts: RunFacts) -> None:
        self.facts = facts

    def record(self, record: Record) -> None:
        assert self.facts is not None
        now = time.monotonic()
        if "train/loss" in record and now - self.last >= PLAIN_SECONDS:
            self.last = now
            parts = [
                f"step {record['step']}/{self.facts.total_steps}  epoch {record['epoch']:.2f}",
                f"loss {record['train/loss']:.4f}",
                *_score(record, self.facts),
                f"lr {record['train/lr']:.3g}",
                *_pace(record),
                f"ETA {self._time_left(record)}",
            ]
            say("  ".join(parts))
        for line in evaluation_lines(record, self.facts):
            say(line)

    def _time_left(self, record: Record) -> str:
        """By the mean pace since the first record, evaluations included: it does not jump."""
        assert self.facts is not None
        self.first = self.first or record
        epochs = record["epoch"] - self.first["epoch"]
        seconds = record["time"] - self.first["time"]
        if epochs <= 0:  # nothing but this record is known
            epochs, seconds = (
                1.0,
                self.facts.samples_per_epoch / max(record["train/samples_per_second"], 1e-9),
            )
        left = int((self.facts.total_epochs - record["epoch"]) * seconds / epochs)
        hours, minutes = divmod(left // 60, 60)
        return f"{hours}:{minutes:02d}:{left % 60:02d}" if hours else f"{minutes}:{left % 60:02d}"

    def finish(self, status: str) -> None:
        pass


def say(line: str) -> None:
    """Print a line with the time of day, which tells in a log file when it was."""
    print(f"{time.strftime('%H:%M:%S')}  {visible(line)}", flush=True)


def _pace(record: Record) -> list[str]:
    """A rank that keeps the others waiting, samples and tokens a second."""
    parts = []
    usual, slowest = record.get("system/step_seconds", 0), record.get("system/slowest_step_seconds")
    if slowest is not None and slowest > SLOW * usual:
        times = slowest / max(usual, 1e-9)
        parts.append(f"rank {record['system/slowest_rank']:g} slow: x{times:.1f}")
    parts.append(f"{record['train/samples_per_second']:,.0f} samples/s")
    if (tokens := record.get("train/tokens_per_second")) is not None:
        parts.append(f"{tokens:,.0f} tokens/s")
    return parts


def _score(record: Record, facts: RunFacts) -> list[str]:
    """The score of a training record, as in `acc 98.20%`; nothing if the task has none."""
    name = facts.score_name
    if not name:
        return []
    return [f"{'acc' if name == 'accuracy' else name} {shown(name, record[f'train/{name}'])}"]


def evaluation_lines(record: Record, facts: RunFacts) -> list[str]:
    """A line for each evaluation in a record, with the metric that selects the best and the loss.

    Nothing is said twice: the best weights that are the final ones have no line of their own.
    """
    names = dict.fromkeys((facts.selection.metric, "loss"))
    epoch = f"{record['epoch']:.2f}".rstrip("0").rstrip(".")
    where = f"epoch {epoch}  step {record['step']}"
    lines: dict[str, str] = {}
    for group, (on, whose) in EVALUATIONS.items():
        if f"{group}/loss" in record:
            values = {name: shown(name, record[f"{group}/{name}"]) for name in names}
            text = "  ".join(f"{on} {name} {value}" for name, value in values.items())
            lines.setdefault(text, f"{where}  {text}{whose}")
    return list(lines.values())


def shown(name: str, value: float) -> str:
    """A metric as it is printed, as in `98.20%` or `0.0567`."""
    return f"{value:.2%}" if name in PERCENTAGES else f"{value:.4f}"
