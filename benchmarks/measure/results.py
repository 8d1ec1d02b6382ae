"""Results on the terminal and on disk: tables, JSON with the machine they come from, plots."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("jax", "jaxlib", "lightning", "accelerate", "matplotlib")


def check_output(path: Path | None, *, picture: bool) -> None:
    """Before anything is measured: the result can be written where it is wanted.

    Args:
        path: The JSON file; None writes nothing.
        picture: Whether one is drawn beside it.

    Raises:
        InputError: If it is no JSON file, its folder cannot be made, or matplotlib is missing.
    """
    if path is None:
        return
    if path.suffix != ".json":
        raise InputError("--output", given=str(path), expected="a file that ends in .json")
    if picture and find_spec("matplotlib") is None:
        raise InputError(
            "matplotlib is not installed",
            expected="it for the picture beside --output",
            remedy="Run `pip install -e '.[benchmark]'`.",
        )
    from trainer.checkpoints.atomic_files import check_output as check_file
    from trainer.checkpoints.atomic_files import make_folder

    make_folder("--output", path.parent)
    check_file("--output", path)


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Without a terminal rich would fold the table at 80 columns.
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)


def write(path: Path, content: dict[str, Any], figure: Figure | None = None) -> None:
    """The result with command, code, versions and hardware as JSON, and its picture beside it."""
    from trainer.checkpoints.atomic_files import replacing

    # Where the data lies on this machine is of no use elsewhere.
    words = [re.sub(r"(data\.root=).*", r"\1FOLDER", word) for word in sys.argv[1:]]
    command = f"python launch/benchmark.py {shlex.join(words)}".strip()
    full = {"command": command, "environment": environment()} | content
    with replacing(path) as file:
        file.write((json.dumps(full, indent=2) + "\n").encode())
    if figure is not None:
        with replacing(path.with_suffix(".png")) as file:
            figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    print(f"written: {path}" + (f", {path.with_suffix('.png')}" if figure is not None else ""))


def environment() -> dict[str, Any]:
    """Code, versions and hardware, the peers' packages included."""
    from trainer.checkpoints.environment import describe_machine, version

    found = describe_machine()
    found["packages"] |= {name: version(name) for name in PACKAGES}
    return found


def range_text(values: dict[str, float] | None, digits: int = 2) -> str:
    """`median (min - max)`; one number where they are the same."""
    if values is None:
        return ""
    median, least, most = (f"{values[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return median if least == most else f"{median} ({least} - {most})"
