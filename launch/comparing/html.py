"""The page of runs: one file that needs nothing else, or what a server sends and then fills."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html import escape
from pathlib import Path

from launch.comparing.comparison import Comparison
from launch.comparing.page_curves import points_per_curve
from launch.comparing.page_data import Json, whole_page
from launch.comparing.tables import Cell, Table, differences_table, explain, results_table
from trainer.checkpoints.atomic_files import write_output

FOLDER = Path(__file__).resolve().parent / "page"
SCRIPTS = (
    "elements.js", "runs.js", "chart.js", "curves.js", "table.js", "config_charts.js",
    "pictures.js", "details.js", "start.js",
)  # fmt: skip
"""In the order in which they are put together."""
SELF, NONE = "'self'", "'none'"
INTO_SCRIPT = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}
"""Characters that could end the script they stand in."""


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the report: tables, curves, config against metrics, layers, confusions, pictures."""
    names = [group.name for group in comparison.groups]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    count = len(comparison.runs)
    written = time.strftime("%Y-%m-%d %H:%M")
    data = whole_page(comparison, points_per_curve(comparison.runs), time.time())
    data |= {"live": False, "subtitle": f"{count} run{'s' * (count > 1)}, written {written}"}
    tables = (results_table(comparison), differences_table(comparison))
    notes = [explain(comparison, mark="Green"), *comparison.notes]
    plain = "".join(
        [*map(table_html, tables), *(f'<p class="quiet">{escape(note)}</p>' for note in notes)]
    )
    title = f"Comparison of {shown}" if len(names) > 1 else shown
    write_output(path, build_page(title, data, plain)[0])


def build_page(title: str, data: Json, plain: str = "") -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy: it runs its own script, and nothing else.

    Args:
        title: Text of its title.
        data: What it starts with.
        plain: HTML for a reader without JavaScript.
    """
    style = _read("style.css")
    script = '"use strict";\n' + "\n".join(map(_read, SCRIPTS))
    own = SELF if data["live"] else ""
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        f"img-src data: {own}; connect-src {own or NONE}; base-uri {NONE}; form-action {NONE}"
    )
    content = json.dumps(data, allow_nan=False, default=str, separators=(",", ":"))
    parts = {
        "title": escape(title),
        "policy": escape(policy),
        "style": style,
        "plain": plain,
        "data": content.translate(INTO_SCRIPT),
        "script": script,
    }
    page = re.sub(r"@([a-z]+)@", lambda found: parts[found[1]], _read("page.html"))
    return page.encode("utf-8", "replace"), policy


def table_html(table: Table) -> str:
    """A table whose first column is a heading; every text in it is escaped."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(first.text)}</th>' + "".join(map(_cell_html, rest)) + "</tr>"
        for first, *rest in table.rows
    )
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table>{body}</table></div>'


def _cell_html(cell: Cell) -> str:
    return f"<td{' class=best' if cell.best else ''}>{escape(cell.text)}</td>"


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a policy names the one script or style that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
