"""Fetch data sets before training: `python launch/prepare_data.py mnist fashion_mnist`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from launch.entry import run_command

DEFAULT = ("mnist", "fashion_mnist", "kmnist")
"""The small ones: EMNIST and CIFAR are some 900 MB more."""


def main(argv: Sequence[str]) -> int:
    """Find, else download and verify, each data set named; print where it lies."""
    from data.catalogue.catalog import CATALOG

    parser = argparse.ArgumentParser(prog="launch/prepare_data.py", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"data sets: {', '.join(CATALOG)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--root", help="folder to look in and to download to (made if need be); default: the cache"
    )
    parser.add_argument(
        "--mirror", action="append", help="address to fetch from instead of the known mirrors"
    )
    arguments = parser.parse_args(argv)
    if arguments.root is not None:
        Path(arguments.root).expanduser().mkdir(parents=True, exist_ok=True)
    for name in arguments.names or DEFAULT:
        prepare(name, arguments.root, tuple(arguments.mirror or ()) or None)
    return 0


def prepare(name: str, root: str | None, mirrors: tuple[str, ...] | None) -> None:
    """One data set, with a progress bar for each file that has to be fetched."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    from configs.schema import DataConfig
    from data.catalogue.acquire import acquire
    from data.datasets import READERS, catalog_facts, load_datasets

    if name in READERS:
        raise InputError(
            name,
            given="a format of your own files",
            expected="a published data set",
            remedy="There is nothing to fetch: train with "
            f"--data.dataset {name} --data.root FOLDER.",
        )
    facts = catalog_facts(name)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns) as progress:

        def show(file: str, received: int, expected: int) -> None:
            if file not in tasks:
                tasks[file] = progress.add_task(file, total=expected)
            progress.update(tasks[file], completed=received)

        paths = acquire(facts, root, mirrors=mirrors, progress=show)
    folder = next(iter(paths.values())).parent
    data = load_datasets(DataConfig(dataset=name, root=root, download=False), seed=0)
    print(
        f"{name}: {len(data.train):,} + {len(data.test):,} samples of shape {data.input_shape} in "
        f"{data.num_classes} classes, verified, in {folder} ({facts.licence})"
    )


if __name__ == "__main__":
    run_command(main)
