"""What a comparison says, as tables of text: for the terminal, and for the report."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.visible import plain
from launch.comparing.comparison import ABSENT, Comparison, Test
from launch.comparing.metric_names import (
    all_metrics,
    is_chosen_on,
    is_fraction,
    is_held_out,
    words_of,
)
from launch.comparing.ranking import By, Group, scores
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import SIGNIFICANT, spread, welch

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MISSING = "-"
MOST_METRICS = 3
SILENT_SECONDS = 600.0
SPEED = ("samples_per_second", "images_per_second", "tokens_per_second", "throughput")
"""Last parts of the names under which speed is recorded."""
ARROW = {True: "↓", False: "↑"}


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    best: bool = False
    value: float | None = None
    """What a column is sorted by; None: by the text."""

    def __str__(self) -> str:
        return f"{self.text} *" if self.best else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """A row per group; the first column is its name."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]

    def turned(self) -> Table:
        """A column per group."""
        corner, *fields = self.columns
        rows = [
            [Cell(name), *(row[index] for row in self.rows)]
            for index, name in enumerate(fields, start=1)
        ]
        return Table(self.title, [corner, *(row[0].text for row in self.rows)], rows)

    def without(self, column: str) -> Table:
        """All but one column."""
        place = self.columns.index(column)
        rows = [[*row[:place], *row[place + 1 :]] for row in self.rows]
        return Table(self.title, [*self.columns[:place], *self.columns[place + 1 :]], rows)


def results_table(comparison: Comparison, now: float | None = None) -> Table:
    """Status, metrics, speed and time of every group, the best values marked."""
    now = time.time() if now is None else now
    groups = comparison.groups
    columns: list[tuple[str, list[Cell]]] = [("run", [Cell(group.name) for group in groups])]
    if any(len(group.runs) > 1 for group in groups):
        columns.append(("seeds", [Cell(_seeds_text(group)) for group in groups]))
    columns.append(("status", _texts(groups, lambda run: status_text(run, now))))
    for metric in shown_metrics(comparison):
        for kind in _kinds(comparison, metric):
            lower = comparison.is_lower_better(metric)
            values = [scores(group, metric, kind, lower) for group in groups]
            name = f"{kind} {metric}\u00a0{ARROW[lower]}"
            columns.append((name, metric_cells(metric, values, lower=lower)))
    columns.append(("samples/s", metric_cells("samples/s", [_speeds(group) for group in groups])))
    if any(slowest_rank(run) for run in comparison.runs):
        columns.append(("slowest rank", _texts(groups, slowest_rank)))
    columns.append(("step", _texts(groups, lambda run: f"{run.records[-1]['step']:g}")))
    times = [_mean_seconds(group) for group in groups]
    columns.append(("training time", [Cell(duration(time), value=time) for time in times]))
    if any(len(group.runs) > 1 for group in groups) and comparison.tests:
        tests = ["best", *(describe(test) for test in comparison.tests)]
        columns.append(("against the best", [Cell(text) for text in tests]))
    return _from_columns("Results", columns)


def differences_table(comparison: Comparison) -> Table:
    """Commit, world size and hardware, then every config key that is not the same in all runs."""
    groups = comparison.groups
    columns: list[tuple[str, list[Cell]]] = [("run", [Cell(group.name) for group in groups])]
    columns.append(("git commit", _texts(groups, lambda run: run.git_commit)))
    columns.append(("world size", _texts(groups, lambda run: run.world_size)))
    columns.append(("hardware", _texts(groups, lambda run: run.hardware)))
    for key, values in comparison.differences.items():
        columns.append((key, [Cell(", ".join(value_text(v) for v in cell)) for cell in values]))
    return _from_columns("Differences", columns)


def explain(comparison: Comparison, mark: str = "*") -> str:
    """How the tables are to be read; `mark` is how they show the best value."""
    better = "lower" if comparison.lower else "higher"
    text = f"Ranked by the {comparison.by} {comparison.metric}, {better} is better."
    if any(len(group.runs) > 1 for group in comparison.groups):
        text += " Several seeds: mean ± sample standard deviation."
    elif len(comparison.groups) > 1:
        text += " Nothing is marked as the best: with one seed a row, any difference may be luck."
    tested = [test for test in comparison.tests if test.result is not None]
    if tested:
        text += (
            f" p: Welch's t-test, two-sided, against the best; below {SIGNIFICANT} counts as "
            "significant."
        )
        text += f" {mark} marks what the test tells from every other value in its column."
        if len(tested) > 1:
            text += f" It is not corrected for the {len(tested)} comparisons."
        if any(min(test.counts) < 3 for test in tested):
            text += " With fewer than 3 seeds on a side it says little."
    return text


def shown_metrics(comparison: Comparison) -> list[str]:
    """The ranking metric, and losses and accuracies beside it, those of held-out data first."""
    others = [
        name
        for name in all_metrics(comparison.runs)
        if name != comparison.metric and (is_fraction(name) or "loss" in words_of(name))
    ]
    others.sort(key=lambda name: (not is_held_out(name), "loss" not in words_of(name)))
    return [comparison.metric, *others[: MOST_METRICS - 1]]


def metric_cells(metric: str, values: list[list[float]], *, lower: bool = False) -> list[Cell]:
    """One cell per group: the value, or mean ± deviation; the best mean is marked if it is no luck.

    That is, if Welch's test tells it from each of the others. No correction for their number is
    due: all of the tests must agree.
    """
    means = [spread(found).mean if found else math.nan for found in values]
    known = [index for index, mean in enumerate(means) if math.isfinite(mean)]
    best = (min if lower else max)(known, key=means.__getitem__, default=-1)
    tests = [welch(values[best], values[other]) for other in known if other != best]
    marked = bool(tests) and all(test is not None and test.p < SIGNIFICANT for test in tests)
    finite = [value for found in values for value in found if math.isfinite(value)]
    percent = is_fraction(metric) and all(0 <= value <= 1 for value in finite)
    return [
        Cell(
            _spread_text(found, percent),
            best=marked and index == best,
            value=means[index] if index in known else None,
        )
        for index, found in enumerate(values)
    ]


def value_text(value: Any) -> str:
    """A config value as YAML would show it on one line."""
    if value is ABSENT or isinstance(value, str):
        return str(value)
    return json.dumps(value, default=str, ensure_ascii=False)


def status_text(run: RunRecord, now: float) -> str:
    """The status; of a run that should be going on, also for how long it has been silent."""
    times = [record["time"] for record in run.records[-1:] if "time" in record]
    silent = now - times[0] if times else 0.0
    if run.status == "running" and silent > SILENT_SECONDS:
        return f"running, silent for {duration(silent)}"
    return run.status


def duration(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes >= 72 * 60:
        return f"{minutes // (24 * 60):,} days"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def describe(test: Test) -> str:
    """What a test says, in a few words."""
    if test.result is None:
        return "no test: one seed" if min(test.counts) < 2 else "no test: no spread"
    verdict = "significant" if test.result.p < SIGNIFICANT else "not significant"
    few = ", few seeds" if min(test.counts) < 3 else ""
    return f"p = {test.result.p:.2g}, {verdict}{few}"


def speed_key(run: RunRecord) -> str | None:
    """The metric that holds the speed of a run."""
    return next((name for name in run.metrics if name.rpartition("/")[2] in SPEED), None)


def speed(run: RunRecord) -> float | None:
    """The median of the recorded samples per second."""
    key = speed_key(run)
    return run.median(key) if key else None


def slowest_rank(run: RunRecord) -> str | None:
    """The rank that was the slowest in most records, and how much slower than the median rank."""
    keys = ("system/slowest_rank", "system/slowest_step_seconds", "system/step_seconds")
    if not set(keys) <= set(run.metrics):
        return None
    columns = [dict(run.points(key)) for key in keys]
    steps = [step for step in columns[0] if step in columns[1] and step in columns[2]]
    named = [[column[step] for column in columns] for step in steps]
    if not named:
        return None
    rank = statistics.mode(rank for rank, _, _ in named)
    ratios = (slowest / max(usual, 1e-9) for _, slowest, usual in named)
    return f"rank {rank:g}, x{statistics.median(ratios):.1f}"


def to_rich(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable

    rich = RichTable(title=plain(table.title), title_justify="left", box=box.SIMPLE_HEAD)
    for column in table.columns:
        rich.add_column(plain(column), overflow="fold")
    for row in table.rows:
        rich.add_row(*(plain(cell, style="bold green" if cell.best else "") for cell in row))
    return rich


def _spread_text(values: list[float], percent: bool) -> str:
    if not values:
        return MISSING
    found, scale = spread(values), 100.0 if percent else 1.0
    if not math.isfinite(found.mean):
        return str(found.mean)
    mean = f"{found.mean * scale:.2f}" if percent else _number(found.mean)
    if found.std is not None:
        mean += f" ± {found.std * scale:.2f}" if percent else f" ± {_number(found.std, 2)}"
    return f"{mean} %" if percent else mean


def _seeds_text(group: Group) -> str:
    """How many seeds its numbers are of, and of how many."""
    counted, total = len(group.counted), len(group.runs)
    return str(total) if counted == total else f"{counted} of {total}"


def _number(value: float, digits: int = 4) -> str:
    large = math.isfinite(value) and abs(value) >= 10**digits
    return f"{value:,.0f}" if large else f"{value:.{digits}g}"


def _kinds(comparison: Comparison, metric: str) -> tuple[By, ...]:
    """Training metrics jump from record to record; what is best on a test set was chosen on it."""
    if metric == comparison.metric:
        return ("best", "final")
    return (comparison.by if is_chosen_on(metric) else "final",)


def _speeds(group: Group) -> list[float]:
    return [value for run in group.counted if (value := speed(run)) is not None]


def _mean_seconds(group: Group) -> float | None:
    known = [run.seconds for run in group.counted if run.seconds is not None]
    return spread(known).mean if known else None


def _texts(groups: Iterable[Group], text: Callable[[RunRecord], object]) -> list[Cell]:
    """What the runs of each group say, each answer once."""
    cells = []
    for group in groups:
        answers = dict.fromkeys(
            MISSING if (said := text(run)) is None else str(said) for run in group.runs
        )
        cells.append(Cell(", ".join(answers)))
    return cells


def _from_columns(title: str, columns: list[tuple[str, list[Cell]]]) -> Table:
    rows = [list(row) for row in zip(*(cells for _, cells in columns), strict=True)]
    return Table(title, [name for name, _ in columns], rows)
