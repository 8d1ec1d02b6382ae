"""A comparison as CSV and JSON for scripts, and as a PNG for papers."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.imports import import_extra
from configs.visible import csv_cell
from launch.comparing.comparison import ABSENT, Comparison
from launch.comparing.history import AXES
from launch.comparing.metric_names import all_metrics, selected_on
from launch.comparing.ranking import Group, scores
from launch.comparing.run_record import RunRecord
from launch.comparing.significance import spread
from launch.comparing.tables import speed, value_text
from launch.figure_files import as_text, png
from trainer.checkpoints.atomic_files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from launch.comparing.panels import Panel

TEST = "Welch's t-test, two-sided, against the best group"
DOTS_PER_INCH = 200
STYLES = {"-": "solid", "--": "dashed", ":": "dotted"}


def write_json(comparison: Comparison, path: Path) -> None:
    """Everything but the curves; numbers that are not finite are null."""
    content = {
        "metric": comparison.metric,
        "by": comparison.by,
        "lower_is_better": comparison.lower,
        "test": TEST,
        "groups": list(_groups(comparison)),
        "runs": [
            {
                "group": group.name,
                **_facts(run),
                "metrics": _metrics(comparison, run),
                "config": run.config,
            }
            for group in comparison.groups
            for run in group.runs
        ],
        "differing_keys": list(comparison.differences),
        "notes": comparison.notes,
    }
    text = json.dumps(finite(content), indent=2, allow_nan=False, default=str, ensure_ascii=False)
    write_output(path, text.encode() + b"\n")


def write_csv(comparison: Comparison, path: Path) -> None:
    """A row per run: facts, final and best metrics, and the config keys that differ."""
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            row: dict[str, Any] = {"group": group.name, **_facts(run)}
            for name, values in _metrics(comparison, run).items():
                row |= {f"{kind} {name}": value for kind, value in values.items()}
            for key in comparison.differences:
                value = run.config.get(key, ABSENT)
                row[f"config {key}"] = "" if value is ABSENT else value_text(value)
            rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    for cells in (columns, *([row.get(name, "") for name in columns] for row in rows)):
        writer.writerow(map(csv_cell, cells))
    write_output(path, file.getvalue().encode())


def write_png(comparison: Comparison, path: Path) -> None:
    """Curves of every panel that has data; the seeds of a group share a colour.

    Raises:
        InputError: If matplotlib is not installed.
    """
    figures = import_extra("matplotlib.figure", "report")
    from launch.comparing.panels import COLOURS, main_panels

    panels = main_panels(comparison.runs)
    rows = math.ceil(len(panels) / 2)
    figure = figures.Figure(figsize=(9.0, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, min(len(panels), 2), squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    handles = {}
    for axis, panel in zip(axes, panels, strict=False):
        for number, group in enumerate(comparison.groups):
            line = _draw(axis, group, panel.keys, COLOURS[number % len(COLOURS)])
            if line is not None:
                handles[group.name] = line
        axis.set_title(as_text(_title(panel)), fontsize=10, wrap=True)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if panel.log:
            axis.set_yscale("log")
    names = [as_text(name) for name in handles]
    figure.legend(handles.values(), names, loc="outside lower center", ncols=3, frameon=False)
    write_output(path, png(figure, dpi=DOTS_PER_INCH))


def finite(content: Any) -> Any:
    """The same content with null for every number that JSON cannot hold."""
    if isinstance(content, dict):
        return {str(key): finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _draw(axis: Axes, group: Group, keys: list[str], colour: str) -> Any:
    """All runs of a group; the second key of a panel is dashed. Returns a line for the legend."""
    line = None
    for style, key in zip(STYLES, keys, strict=False):
        for run in group.runs:
            points = run.points(key)
            steps, values = zip(*points, strict=True) if points else ((), ())
            drawn = axis.plot(
                steps,
                values,
                style,
                color=colour,
                linewidth=1.0,
                alpha=0.9 if len(group.runs) == 1 else 0.6,
                marker="." if len(points) == 1 else None,
            )
            line = line or drawn[0]
    return line


def _title(panel: Panel) -> str:
    if len(panel.keys) == 1:
        return panel.title
    styles = zip(STYLES.values(), panel.keys, strict=False)
    return f"{panel.title} ({', '.join(f'{style} {key}' for style, key in styles)})"


def _groups(comparison: Comparison) -> Iterator[dict[str, Any]]:
    tests = {test.group.name: test for test in comparison.tests}
    for rank, group in enumerate(comparison.groups, start=1):
        values = scores(group, comparison.metric, comparison.by, comparison.lower)
        found = spread(values) if values else None
        test = tests.get(group.name)
        result = test.result if test else None
        yield {
            "rank": rank,
            "name": group.name,
            "runs": [run.source for run in group.runs],
            "count": len(values),
            "finished": len(group.finished),
            "mean": found.mean if found else None,
            "std": found.std if found else None,
            "difference_to_best": -result.difference if result else None,
            "t": result.t if result else None,
            "degrees_of_freedom": result.degrees if result else None,
            "p": result.p if result else None,
        }


def _facts(run: RunRecord) -> dict[str, Any]:
    last = run.records[-1]
    return {
        "name": run.name,
        "source": run.source,
        "status": run.status,
        "best_chosen_on": selected_on(run),
        "git_commit": run.git_commit,
        "world_size": run.world_size,
        "hardware": run.hardware,
        **{axis: last.get(axis) for axis in AXES if axis != "time"},
        "samples_per_second": speed(run),
    }


def _metrics(comparison: Comparison, run: RunRecord) -> dict[str, dict[str, float | None]]:
    """Final and best value of every metric, and the step of the best."""
    found = {}
    for name in all_metrics([run]):
        best = run.best(name, lower=comparison.is_lower_better(name))
        found[name] = {
            "final": run.final(name),
            "best": best[0] if best else None,
            "best_step": best[1] if best else None,
        }
    return found
