"""A comparison as one HTML file that needs nothing else: no network, no server."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import InputError
from launch.comparing.comparison import LAYERS, Comparison, Group, is_held_out, is_share
from launch.comparing.comparison_files import INSTALL, finite, replace
from launch.comparing.history import AXES
from launch.comparing.panels import panels
from launch.comparing.run_record import RunRecord
from launch.comparing.tables import (
    Cell,
    Table,
    differences_table,
    explain,
    results_table,
)
from trainer.records.sinks import Record

FOLDER = Path(__file__).resolve().parent
MOST_POINTS = 2000
"""Points of a curve; of longer ones the lowest and highest of each stretch are kept."""
KINDS = {"norm": "gradient norm", "update_ratio": "update / weight"}
"""Last parts of the keys under which layers are recorded."""
Axis = list[float | None]


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the report.

    Raises:
        InputError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("--html needs plotly", remedy=INSTALL) from None
    names = [group.name for group in comparison.groups]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    count = len(comparison.runs)
    written = time.strftime("%Y-%m-%d %H:%M")
    notes = [explain(comparison, mark="green"), *comparison.notes]
    parts = {
        "title": html.escape(f"Comparison of {shown}" if len(names) > 1 else shown),
        "subtitle": html.escape(f"{count} run{'s' * (count > 1)}, written {written}"),
        "style": (FOLDER / "report.css").read_text(encoding="utf-8"),
        "script": (FOLDER / "report.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "results": table_html(results_table(comparison)),
        "differences": table_html(differences_table(comparison)),
        "runs": table_html(every_run(comparison)),
        "notes": "".join(f'<p class="quiet">{html.escape(note)}</p>' for note in notes),
        "data": script_json(report_data(comparison)),
    }
    template = (FOLDER / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"@([a-z]+)@", lambda found: parts[found[1]], template)
    replace(path, page.encode())


def report_data(comparison: Comparison) -> dict[str, Any]:
    """What the page's script draws."""
    runs = []
    for number, group in enumerate(comparison.groups):
        runs += [_run_data(run, number) for run in group.runs]
    axes = {"step": "step", "epoch": "epoch", "time": "elapsed_seconds"}
    records = [record for run in comparison.runs for record in run.records]
    return {
        "groups": [{"name": group.name, "count": len(group.runs)} for group in comparison.groups],
        "runs": runs,
        "axes": [axis for axis, key in axes.items() if any(key in r for r in records)],
        "panels": [
            {
                "title": panel.title,
                "main": panel.main,
                "percent": all(is_share(key) for key in panel.keys),
                "keys": [{"name": key, "held_out": is_held_out(key)} for key in panel.keys],
            }
            for panel in panels(comparison.runs)
        ],
    }


def script_json(content: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(finite(content), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_html(table: Table) -> str:
    """A table whose first column is a heading; every text in it is escaped."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row" title="{html.escape(first.text)}">{html.escape(first.text)}</th>'
        + "".join(_cell_html(cell) for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def every_run(comparison: Comparison) -> Table:
    """The results of each run by itself, and where it was read from."""
    alone = [Group(run.name, (run,)) for run in comparison.runs]
    table = results_table(dataclasses.replace(comparison, groups=alone, tests=[]))
    sources = [Cell(run.source) for run in comparison.runs]
    rows = [[*row, source] for row, source in zip(table.rows, sources, strict=True)]
    return Table(table.title, [*table.columns, "read from"], rows)


def thin(points: Sequence[Record], key: str, most: int = MOST_POINTS) -> list[Record]:
    """At most so many records: the lowest and the highest value of each stretch, and the ends."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / (most - 2))
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        indices = range(start, min(start + stretch, len(points)))
        kept |= {
            min(indices, key=lambda i: points[i][key]),
            max(indices, key=lambda i: points[i][key]),
        }
    return [points[index] for index in sorted(kept)]


def _cell_html(cell: Cell) -> str:
    text = html.escape(cell.text)
    return (
        f'<td class="best" title="{text}">{text}</td>'
        if cell.best
        else f'<td title="{text}">{text}</td>'
    )


def _run_data(run: RunRecord, group: int) -> dict[str, Any]:
    names = [name for name in run.metrics if name not in AXES and not name.startswith(LAYERS)]
    classes = run.classes or [str(index) for index in range(len(run.confusion))]
    return {
        "name": run.name,
        "group": group,
        "seconds": run.seconds,
        "series": {name: _series(run, name) for name in names},
        "layers": [found for kind in KINDS if (found := _layers(run, kind))],
        "confusion": run.confusion,
        "classes": classes,
    }


def _series(run: RunRecord, name: str) -> dict[str, Axis]:
    points = thin([record for record in run.records if name in record], name)
    columns = {"step": "step", "epoch": "epoch", "time": "elapsed_seconds", "value": name}
    return {
        column: [_rounded(point.get(key)) for point in points] for column, key in columns.items()
    }


def _layers(run: RunRecord, kind: str) -> dict[str, Any] | None:
    """A row per parameter in the order of the model, a column per recorded step, as log10."""
    keys = [name for name in run.metrics if name.startswith(LAYERS) and name.endswith(f"/{kind}")]
    records = [record for record in run.records if any(key in record for key in keys)]
    if not records:
        return None
    records = records[:: math.ceil(len(records) / 400)]
    return {
        "title": KINDS[kind],
        "names": [key.removeprefix(LAYERS).removesuffix(f"/{kind}") for key in keys],
        "steps": [record["step"] for record in records],
        "log10": [[_log10(record.get(key)) for record in records] for key in keys],
    }


def _log10(value: float | None) -> float | None:
    """None for zero too: nothing arrives at the parameter, and the map shows a gap."""
    known = value is not None and math.isfinite(value) and value > 0
    return round(math.log10(value), 3) if known and value is not None else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
