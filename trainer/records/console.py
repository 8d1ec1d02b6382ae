"""What the person in front of the screen sees: a live display, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Literal

from trainer.records.sinks import Record, RunFacts, Sink

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 2.0
"""At most one plain training line in this time; evaluations are always printed."""
SHARES = ("accuracy", "label_accuracy", "f1", "precision", "recall", "exact_match")
"""Metrics that are read as percentages."""


def build_console(progress: Literal["auto", "rich", "plain", "off"]) -> list[Sink]:
    """The display a config asks for; auto: live on a terminal, plain lines elsewhere."""
    if progress == "off":
        return []
    live = progress == "rich" or (progress == "auto" and sys.stdout.isatty())
    return [RichSink() if live else PlainSink()]


class RichSink:
    """A progress bar with epoch, step, loss, accuracy, samples/s and ETA; evaluations above it."""

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

        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]:.2f}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task(
            "train", total=facts.total_steps, completed=facts.first_step, epoch=0.0, metrics=""
        )
        self.progress.start()

    def record(self, record: Record) -> None:
        assert self.progress is not None
        assert self.task is not None
        assert self.facts is not None
        if "eval/loss" in record:
            line = _evaluation_line(record, self.facts)
            self.progress.console.print(line, highlight=False)
        if "train/loss" in record:
            metrics = (
                f"loss {record['train/loss']:.4f}  {_score(record, self.facts)}  "
                f"{record['train/samples_per_second']:,.0f} samples/s"
            )
            self.progress.update(
                self.task, completed=record["step"], epoch=record["epoch"], metrics=metrics
            )

    def finish(self, status: str) -> None:
        if self.progress is not None:
            self.progress.stop()


class PlainSink:
    """One line now and then, for log files."""

    def __init__(self) -> None:
        self.facts: RunFacts | None = None
        self.last = float("-inf")

    def start(self, facts: RunFacts) -> None:
        self.facts = facts

    def record(self, record: Record) -> None:
        assert self.facts is not None
        now = time.monotonic()
        if "train/loss" in record and now - self.last >= PLAIN_SECONDS:
            self.last = now
            rate = max(record["train/samples_per_second"], 1e-9)
            epochs = self.facts.total_epochs - record["epoch"]
            left = epochs * self.facts.samples_per_epoch / rate
            print(
                f"step {record['step']}/{self.facts.total_steps}  epoch {record['epoch']:.2f}  "
                f"loss {record['train/loss']:.4f}  {_score(record, self.facts)}  "
                f"lr {record['train/lr']:.3g}  {rate:,.0f} samples/s  "
                f"ETA {int(left) // 60}:{int(left) % 60:02d}",
                flush=True,
            )
        if "eval/loss" in record:
            print(_evaluation_line(record, self.facts), flush=True)

    def finish(self, status: str) -> None:
        pass


def _score(record: Record, facts: RunFacts) -> str:
    name = facts.score_name
    return f"{'acc' if name == 'accuracy' else name} {shown(name, record[f'train/{name}'])}"


def _evaluation_line(record: Record, facts: RunFacts) -> str:
    names = dict.fromkeys((facts.selection.metric, "loss"))
    values = "  ".join(f"test {name} {shown(name, record[f'eval/{name}'])}" for name in names)
    return f"epoch {record['epoch']:g}  step {record['step']}  {values}"


def shown(name: str, value: float) -> str:
    """A metric in print: shares as percentages."""
    return f"{value:.2%}" if name in SHARES else f"{value:.4f}"
