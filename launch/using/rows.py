"""Predictions as rows: a table for a person, CSV or JSON for a program."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from configs.visible import csv_cell, plain
from trainer.checkpoints.atomic_files import cannot_write, replacing

TOP = 3
"""Classes that a person is shown for an image."""


def show_rows(rows: Iterator[dict[str, Any]], names: Sequence[str]) -> None:
    """A line for each image, for a person: its class, and the next likely ones."""
    from rich.console import Console
    from rich.table import Table

    table = Table("input", "class", "probability", "then")
    for row in rows:
        probabilities = row["probabilities"]
        ranked = sorted(range(len(names)), key=lambda label: -probabilities[label])[1:TOP]
        others = "  ".join(f"{names[label]} {probabilities[label]:.1%}" for label in ranked)
        where = f"{row['input']} [{row['index']}]" if row["index"] else row["input"]
        cells = where, row["name"], f"{row['probability']:.1%}", others
        table.add_row(*map(plain, cells))
    Console().print(table)


def write_rows(
    file: TextIO, rows: Iterator[dict[str, Any]], kind: str, names: Sequence[str]
) -> None:
    """Write the rows as they come."""
    if kind == "csv":
        table = csv.writer(file, lineterminator="\n")
        fixed = ("input", "index", "class", "name", "probability")
        table.writerow([*fixed, *(csv_cell(f"p_{name}") for name in names)])
        for row in rows:
            table.writerow([*(csv_cell(row[key]) for key in fixed), *row["probabilities"]])
    elif kind == "jsonl":
        for row in rows:
            file.write(json.dumps(row) + "\n")
    else:
        separator = "[\n"
        for row in rows:
            file.write(separator + json.dumps(row))
            separator = ",\n"
        file.write("\n]\n")


@contextlib.contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """A text file that appears when it is complete."""
    try:
        with replacing(path) as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=True)
            yield text
            text.flush()
            text.detach()
    except OSError as error:
        raise cannot_write(path, error) from None
