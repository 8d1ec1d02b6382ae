"""Records on the screen: a live display on a terminal, or plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
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
SHORTEST_BAR = 4
NO_CURSOR = ("dumb", "unknown")
"""Terminals (TERM) on which rich shows nothing before the end."""
SLOW = 1.5
"""Times the median step of all ranks, from which on the slowest rank is named."""
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
            parts = [f"loss {record['train/loss']:.4f}", _score(record, self.facts).strip()]
            total = self.facts.total_steps
            beside = len(
                f"epoch {record['epoch']:.2f} {'-' * SHORTEST_BAR} {total}/{total}  0:00:00"
            )
            room = self.progress.console.width - beside
            metrics = fitted([*filter(None, parts), *_pace(record).split("  ")], room)
            self.progress.update(
                self.task, completed=record["step"], epoch=record["epoch"], metrics=metrics
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
            say(
                f"step {record['step']}/{self.facts.total_steps}  epoch {record['epoch']:.2f}  "
                f"loss {record['train/loss']:.4f}  {_score(record, self.facts)}"
                f"lr {record['train/lr']:.3g}  {_pace(record)}  ETA {self._time_left(record)}"
            )
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


def fitted(parts: Sequence[str], room: int) -> str:
    """As many of the parts as so many columns hold: else rich would cut steps and time left."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        line = longer if len(longer) <= room else line
    return line


def say(line: str) -> None:
    """Print a line with the time of day, which tells in a log file when it was."""
    print(f"{time.strftime('%H:%M:%S')}  {visible(line)}", flush=True)


def _pace(record: Record) -> str:
    """Samples and tokens a second, and a rank that keeps the others waiting."""
    parts = [f"{record['train/samples_per_second']:,.0f} samples/s"]
    if (tokens := record.get("train/tokens_per_second")) is not None:
        parts.append(f"{tokens:,.0f} tokens/s")
    usual, slowest = record.get("system/step_seconds", 0), record.get("system/slowest_step_seconds")
    if slowest is not None and slowest > SLOW * usual:
        parts.append(
            f"rank {record['system/slowest_rank']:g} is slow: {slowest * 1e3:.3g} ms a step, "
            f"usual {usual * 1e3:.3g}"
        )
    return "  ".join(parts)


def _score(record: Record, facts: RunFacts) -> str:
    """The score of a training record, as in `acc 98.20%  `; empty if the task has none."""
    name = facts.score_name
    if not name:
        return ""
    return f"{'acc' if name == 'accuracy' else name} {shown(name, record[f'train/{name}'])}  "


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
