"""A comparison as one HTML file that needs nothing else: no network, no server."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from configs.imports import import_extra
from launch.comparing.comparison import Comparison
from launch.comparing.comparison_files import replace
from launch.comparing.curve_charts import curves_figure
from launch.comparing.heatmaps import confusion_figure, layers_figure, most_confused
from launch.comparing.panels import panels
from launch.comparing.ranking import Group
from launch.comparing.tables import (
    Cell,
    Table,
    differences_table,
    explain,
    results_table,
)

TEMPLATE = Path(__file__).resolve().with_name("report.html")
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "modeBarButtons": [["toImage", "resetScale2d"]],
}


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the report: tables, curves, and maps of gradients and of confusions.

    Raises:
        InputError: If plotly is not installed.
    """
    plotly = import_extra("plotly.offline", "report").get_plotlyjs()
    names = [group.name for group in comparison.groups]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    count = len(comparison.runs)
    written = time.strftime("%Y-%m-%d %H:%M")
    notes = [explain(comparison, mark="green"), *comparison.notes]
    charts = panels(comparison.runs)
    parts = {
        "title": escape(f"Comparison of {shown}" if len(names) > 1 else shown),
        "subtitle": escape(f"{count} run{'s' * (count > 1)}, written {written}"),
        "plotly": plotly,
        "results": table_html(results_table(comparison)),
        "notes": "".join(f'<p class="quiet">{escape(note)}</p>' for note in notes),
        "curves": _curves(comparison, [panel for panel in charts if panel.main], "Curves"),
        "more": _curves(comparison, [panel for panel in charts if not panel.main], "More metrics"),
        "layers": _layers(comparison),
        "confusion": _confusions(comparison),
        "differences": table_html(differences_table(comparison)),
        "runs": table_html(every_run(comparison)),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub(r"@([a-z]+)@", lambda found: parts[found[1]], template)
    replace(path, page.encode())


def _curves(comparison: Comparison, charts: Sequence[Any], title: str) -> str:
    return _section(title, [curves_figure(comparison, charts)]) if charts else ""


def _layers(comparison: Comparison) -> str:
    figure = layers_figure(comparison.runs)
    return "" if figure is None else _section("Gradients of each layer", [figure])


def _confusions(comparison: Comparison) -> str:
    runs = [run for run in comparison.runs if run.confusion]
    captions = [f"{run.name}: {most_confused(run)}" for run in runs]
    text = "Rows are true classes, columns predictions; the colour is the part of the row."
    figures = [confusion_figure(run) for run in runs]
    return _section("Confusion matrices", figures, text, captions) if runs else ""


def _section(
    title: str, figures: Sequence[Any], text: str = "", captions: Sequence[str] = ()
) -> str:
    """A heading and plotly figures, whose script is in the page once already."""
    above = [f'<p class="quiet">{escape(caption)}</p>' for caption in captions] or [""]
    shown = "".join(
        f'<div class="card">{caption}'
        f"{figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)}</div>"
        for caption, figure in zip(above, figures, strict=True)
    )
    quiet = f'<p class="quiet">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{quiet}{shown}</section>"


def table_html(table: Table) -> str:
    """A table whose first column is a heading; every text in it is escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row" title="{escape(first.text)}">{escape(first.text)}</th>'
        + "".join(_cell_html(cell) for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _cell_html(cell: Cell) -> str:
    text = escape(cell.text)
    return f'<td{" class=best" if cell.best else ""} title="{text}">{text}</td>'


def every_run(comparison: Comparison) -> Table:
    """The results of each run by itself, and where it was read from."""
    alone = [Group(run.name, (run,)) for run in comparison.runs]
    table = results_table(dataclasses.replace(comparison, groups=alone, tests=[]))
    sources = [Cell(run.source) for run in comparison.runs]
    rows = [[*row, source] for row, source in zip(table.rows, sources, strict=True)]
    return Table(table.title, [*table.columns, "read from"], rows)
