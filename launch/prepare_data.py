"""Make data ready before training: `python launch/prepare_data.py mnist fashion_mnist` fetches data
sets, `--text book.txt --root tokens/book` turns text into tokens."""

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
from launch.entry import called, run_command

DEFAULT = ("mnist", "fashion_mnist", "kmnist")
"""The small ones: EMNIST and CIFAR are some 900 MB more."""


def main(argv: Sequence[str]) -> int:
    """Find, else download and verify, each data set named, or turn text files into tokens; print
    where they lie."""
    from data.catalogue.catalog import CATALOG

    parser = argparse.ArgumentParser(prog=called(__file__), description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"data sets: {', '.join(CATALOG)} (default: {', '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--root",
        help="folder to look in and to download to (default: the cache), or of the tokens; made if "
        "need be",
    )
    parser.add_argument(
        "--mirror", action="append", help="address to fetch from instead of the known mirrors"
    )
    add_text_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.text:
        return prepare_text(arguments)
    if arguments.root is not None:
        Path(arguments.root).expanduser().mkdir(parents=True, exist_ok=True)
    for name in arguments.names or DEFAULT:
        prepare(name, arguments.root, tuple(arguments.mirror or ()) or None)
    return 0


def add_text_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    group.add_argument(
        "--text",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="turn these files of UTF-8 (plain or .gz) into tokens in the folder --root",
    )
    group.add_argument(
        "--tokenizer",
        default="characters",
        metavar="KIND",
        help="bytes, characters (default), or a tokenizer.json of the package tokenizers",
    )
    group.add_argument(
        "--separator",
        metavar="TEXT",
        help="what stands between two documents of a file; without it a file is one document",
    )
    group.add_argument(
        "--end_of_text",
        metavar="TOKEN",
        help="the token of the tokenizer.json that ends a document (default: a usual one)",
    )
    for name, default in (("validation", 0.0), ("test", 0.1)):
        group.add_argument(
            f"--{name}",
            type=float,
            default=default,
            metavar="PART",
            help=f"the part at the end of each document for the {name} set (default: {default:g})",
        )


def prepare_text(arguments: argparse.Namespace) -> int:
    """Text files as a folder of tokens, for `data.dataset: tokens`."""
    from data.formats.text_files import encode_files
    from data.formats.token_files import write_tokens

    if arguments.names:
        raise InputError("NAME", given=arguments.names, expected="no data set beside --text")
    if arguments.root is None:
        raise InputError("--root", expected="the folder to write tokens to, with --text")
    held_out = {name: getattr(arguments, name) for name in ("validation", "test")}
    for name, part in held_out.items():
        if not 0 <= part < 1:
            raise InputError(f"--{name}", given=part, expected="a part from 0 to below 1")
    if sum(held_out.values()) >= 1:
        given = sum(held_out.values())
        raise InputError("--validation and --test", given=given, expected="parts below 1 in all")
    encoded = encode_files(
        arguments.text,
        arguments.tokenizer,
        held_out=held_out,
        separator=arguments.separator,
        end=arguments.end_of_text,
    )
    folder = Path(arguments.root).expanduser()
    write_tokens(folder, encoded)
    counts = ", ".join(
        f"{len(tokens):,} tokens of {name}" for name, tokens in encoded.parts.items()
    )
    documents = f"{encoded.documents:,} document{'s' if encoded.documents > 1 else ''}"
    print(
        f"{folder}: {counts}, from {documents}, vocabulary of {encoded.vocabulary.size:,} "
        f"({encoded.vocabulary.kind}); train on it with --data.dataset tokens --data.root {folder}"
    )
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
            f"--data.dataset {name} --data.root FOLDER."
            + (" --text FILE --root FOLDER makes tokens of text." if name == "tokens" else ""),
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
