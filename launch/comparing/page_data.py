"""What the page of runs shows, as a value that JSON can hold: the page draws it, and no more.

Every text in it is shown as text: names, configs and notes come from anywhere.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.read_files import open_plain
from launch.comparing.comparison import Comparison, find_differences
from launch.comparing.comparison_files import finite
from launch.comparing.page_curves import ALL_CELLS, curves_of, knots_of, layers_of, number
from launch.comparing.panels import COLOURS, panels
from launch.comparing.ranking import UNFINISHED, Group
from launch.comparing.run_record import RunRecord
from launch.comparing.tables import (
    Cell,
    Table,
    differences_table,
    explain,
    results_table,
    status_text,
    value_text,
)

MOST_PAIRS = 20_000
"""Cells of a confusion matrix: the fullest ones."""
MOST_MISTAKES = 50
MOST_PICTURE_BYTES = 1 << 20
ALL_PICTURE_BYTES = 3 << 18
"""Of all pictures in one file together."""
Json = dict[str, Any]


def overview(comparison: Comparison | None, left_out: Sequence[str], now: float) -> Json:
    """What the page says of all runs: the ranking, its reservations, what differs, the panels.

    Args:
        comparison: None if no run has recorded anything yet.
        left_out: A line for each run that cannot be shown.
        now: Seconds since 1970.
    """
    lists = ("groups", "panels", "columns", "notes", "differing")
    content: Json = {"colours": COLOURS, "left_out": list(left_out), **{name: [] for name in lists}}
    if comparison is None:
        return content | {"rows": {}, "metric": "", "explain": ""}
    results = results_table(comparison, now)
    differences = differences_table(comparison)
    alone = every_run(comparison, results.columns[1:], now)
    columns = _columns(results, "result", comparison) + _columns(differences, "config", comparison)
    groups = [
        {
            "name": group.name,
            "runs": [run.source for run in group.runs],
            "cells": [_cell(cell) for cell in (*result[1:], *different[1:])],
        }
        for group, result, different in zip(
            comparison.groups, results.rows, differences.rows, strict=True
        )
    ]
    rows = {
        run.source: [_cell(cell) for cell in row]
        for run, row in zip(comparison.runs, alone.rows, strict=True)
    }
    return content | {
        "metric": comparison.metric,
        "by": comparison.by,
        "lower": comparison.lower,
        "explain": explain(comparison, mark="★"),
        "notes": comparison.notes,
        "columns": columns,
        "groups": groups,
        "rows": rows,
        "differing": list(comparison.differences),
        "panels": [dataclasses.asdict(panel) for panel in panels(comparison.runs)],
    }


def run_content(run: RunRecord, *, points: int, cells: int, now: float) -> Json:
    """What the page says of one run.

    Args:
        run: Any run.
        points: Most points of a curve.
        cells: About how many numbers its maps of layers may have.
        now: Seconds since 1970.
    """
    content: Json = {
        "id": run.source,
        "name": run.name,
        "status": run.status,
        "status_text": status_text(run, now),
        "unfinished": run.status in UNFINISHED,
        "facts": {
            "read from": run.source,
            "git commit": run.git_commit,
            "world size": run.world_size,
            "hardware": run.hardware,
            **run.execution,
        },
        "config": {key: value_text(value) for key, value in run.config.items()},
        "metrics": {
            name: [number(value) for value in _last_and_extremes(run, name)] for name in run.metrics
        },
        "note": run.annotation.note,
        "tags": run.annotation.tags,
        "notes": run.notes,
        "knots": knots_of(run),
        "curves": curves_of(run, points),
        "layers": layers_of(run, cells),
        "confusion": _confusion(run),
        "mistakes": _mistakes(run),
        "pictures": [path.name for path in run.pictures],
    }
    found: Json = finite(content)  # files may hold what JSON has no word for
    return found


def whole_page(comparison: Comparison, points: int, now: float) -> Json:
    """Everything of a comparison, with the pictures that fit in."""
    runs = comparison.runs
    cells = ALL_CELLS // len(runs)
    found = [run_content(run, points=points, cells=cells, now=now) for run in runs]
    room = ALL_PICTURE_BYTES
    for run, content in zip(runs, found, strict=True):
        shown = {}
        for path in run.pictures:
            picture = read_picture(path)
            if picture and len(picture) <= room:
                room -= len(picture)
                shown[path.name] = "data:image/png;base64," + base64.b64encode(picture).decode()
        content["pictures"], content["embedded"] = list(shown), shown
    return {"page": overview(comparison, [], now), "runs": found, "now": now}


def read_picture(path: Path) -> bytes | None:
    """The bytes of a PNG; None if it is none, too large, or not to be read."""
    try:
        with open_plain(path) as file:
            content = file.read(MOST_PICTURE_BYTES + 1)
    except (OSError, ValueError):
        return None
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return content if is_png and len(content) <= MOST_PICTURE_BYTES else None


def every_run(comparison: Comparison, wanted: Sequence[str], now: float) -> Table:
    """The results of each run by itself, as far as they are wanted, and what differs."""
    alone = [Group(run.name, (run,)) for run in comparison.runs]
    differing = find_differences(alone)
    by_itself = dataclasses.replace(comparison, groups=alone, tests=[], differences=differing)
    results, differences = results_table(by_itself, now), differences_table(by_itself)
    places = {name: index for index, name in enumerate(results.columns)}
    rows = [
        [
            *(result[places[name]] if name in places else Cell("") for name in wanted),
            *different[1:],
        ]
        for result, different in zip(results.rows, differences.rows, strict=True)
    ]
    return Table("Every run", [*wanted, *differences.columns[1:]], rows)


def _columns(table: Table, kind: str, comparison: Comparison) -> list[Json]:
    """Columns of the page; what is the same in all rows is shown only if it is asked for."""
    found = []
    for index, name in enumerate(table.columns[1:], start=1):
        same = kind == "config" and len({row[index].text for row in table.rows}) == 1
        shown = name in comparison.differences or not same
        found.append({"name": name, "kind": kind, "shown": shown})
    return found


def _cell(cell: Cell) -> list[Any]:
    """[text, what it is sorted by or None, whether it is the best]"""
    value = None if cell.value is None else number(cell.value)
    return [cell.text, value, cell.best]


def _last_and_extremes(run: RunRecord, name: str) -> list[float]:
    """Final, lowest and highest value of a metric."""
    lowest, highest = run.best(name, lower=True), run.best(name, lower=False)
    values = [run.final(name), lowest and lowest[0], highest and highest[0]]
    return [float("nan") if value is None else value for value in values]


def _confusion(run: RunRecord) -> Json | None:
    """Counts as [true, predicted, count], how many there are of each class, and its name."""
    matrix = run.confusion
    if not matrix:
        return None
    pairs = [
        [truth, guess, count]
        for truth, row in enumerate(matrix)
        for guess, count in enumerate(row)
        if count
    ]
    pairs.sort(key=lambda pair: -pair[2])
    return {
        "classes": class_names(run),
        "support": [sum(row) for row in matrix],
        "pairs": pairs[:MOST_PAIRS],
    }


def _mistakes(run: RunRecord) -> list[list[str]]:
    """[index, true, predicted, confidence] of the most confident mistakes."""
    names = dict(enumerate(class_names(run)))
    found = []
    for entry in run.mistakes[:MOST_MISTAKES]:
        truth, guess = entry.get("true"), entry.get("predicted")
        confidence = entry.get("confidence")
        sure = f"{confidence:.1%}" if isinstance(confidence, float) else ""
        classes = [str(names.get(c, c) if isinstance(c, int) else c) for c in (truth, guess)]
        found.append([str(entry.get("index", "")), *classes, sure])
    return found


def class_names(run: RunRecord) -> list[str]:
    """The names of the classes, or their numbers."""
    count = len(run.confusion)
    return run.classes if len(run.classes) >= count else [str(index) for index in range(count)]
