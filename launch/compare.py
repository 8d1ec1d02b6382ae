"""Compare runs: `python launch/compare.py runs/a runs/b --html report.html`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.visible import plain, visible
from launch.comparing.comparison import Comparison, compare
from launch.comparing.ranking import add_ranking_arguments
from launch.comparing.tables import Cell, Table, differences_table, explain, results_table, to_rich
from launch.entry import called, run_command

WIDTH_WITHOUT_TERMINAL = 160
FEW = 3
"""As many runs stand side by side, whatever the width."""
LEAST = (
    *("slowest rank", "git commit", "hardware", "step", "samples/s", "seeds", "training time"),
    "status",
)
"""Columns that a narrow terminal does without, the first ones first."""
LONG_NAME = 32
"""Letters of a run's name that are worth a column; a longer one is folded."""
EPILOG = """examples:
  convoy compare runs/a runs/b
  convoy compare --html report.html
  convoy compare runs/a entity/project/run_id wandb/offline-run-20260101_120000-abc
  convoy compare entity/project --filter-group study --metric eval/loss
"""


def main(argv: Sequence[str]) -> int:
    """Read, compare, print, and write what was asked for."""
    arguments = build_parser().parse_args(argv)
    from launch.comparing.run_sources import read_runs
    from trainer.checkpoints.atomic_files import check_output

    outputs = {
        "csv": arguments.csv, "json": arguments.json, "png": arguments.png, "html": arguments.html
    }  # fmt: skip
    for kind, path in outputs.items():
        if path is not None:
            check_output(f"--{kind}", path)
    runs, notes = read_runs(arguments.runs, group=arguments.filter_group, tag=arguments.filter_tag)
    comparison = compare(runs, metric=arguments.metric, by=arguments.by, by_seed=arguments.group)
    show(comparison, notes)
    write(comparison, outputs)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        description="Show which of several runs is better, by how much, and what differs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        default=["runs"],
        metavar="RUN",
        help="a run directory, a folder of runs, a pattern in quotes, an offline W&B directory, or "
        "a W&B path (entity/project/run_id or entity/project); default: all in runs/",
    )
    add_ranking_arguments(parser)
    parser.add_argument("--filter-group", metavar="GROUP", help="of a W&B project, only this group")
    parser.add_argument("--filter-tag", metavar="TAG", help="of a W&B project, only this tag")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="one page with curves, for a browser"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="curves as a picture, for a paper")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a row per run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything but the curves")
    return parser


def show(comparison: Comparison, notes: Sequence[str]) -> None:
    """Print the tables, as much of each as the terminal holds."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    for table in (results_table(comparison), differences_table(comparison)):
        ranks_by = f"{comparison.by} {comparison.metric}"
        shown, left_out = fit(table, console.width, keep=ranks_by)
        console.print(to_rich(shown))
        if left_out:
            text = f"No room here for: {', '.join(left_out)}. A wider terminal, --html and --csv "
            console.print(plain(f"{text}have them.\n"))
    for line in (explain(comparison), *comparison.notes, *notes):
        console.print(plain(line))


def fit(table: Table, width: int, *, keep: str) -> tuple[Table, list[str]]:
    """The table as it is; or turned, if that is narrow enough; or without the columns that matter
    least, whose names are returned, so that none is folded to a few letters. The column that begins
    with `keep` stays."""
    from rich.console import Console

    def needed(table: Table) -> int:
        rows = [[Cell(row[0].text[:LONG_NAME]), *row[1:]] for row in table.rows]
        console = Console(width=10_000)
        return console.measure(to_rich(replace(table, rows=rows))).maximum

    turned = table.turned()
    if needed(table) <= width:
        return table, []
    if needed(turned) <= width or len(table.rows) <= FEW:
        return turned, []
    left_out: list[str] = []
    while needed(table) > width and len(table.columns) > 2:
        others = [name for name in table.columns[1:] if not name.startswith(keep)]
        name = next((name for name in LEAST if name in others), others[-1])
        table = table.without(name)
        left_out.append(name)
    return table, left_out


def write(comparison: Comparison, outputs: dict[str, Path | None]) -> None:
    """Write the files that were asked for."""
    from launch.comparing.comparison_files import write_csv, write_json, write_png
    from launch.comparing.html import write_html

    writers = {"csv": write_csv, "json": write_json, "png": write_png, "html": write_html}
    for kind, path in outputs.items():
        if path is not None:
            try:
                writers[kind](comparison, path)
            except OSError as error:
                raise InputError(f"cannot write {path} ({error.strerror})") from None
            print(visible(f"wrote {path}"))


if __name__ == "__main__":
    run_command(main)
