"""`convoy NAME ...`: the file of this folder that a command is in, imported when it is called."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError, did_you_mean
from configs.own_modules import PREFIX
from launch.entry import program_of, run_command
from trainer.ranks.launcher import guess


@dataclass(frozen=True, slots=True)
class Command:
    """A file of this folder, which also works as `python launch/FILE.py`."""

    file: str
    line: str
    """What it does, for the list of all."""
    ranks: bool = False
    """Whether it may run on several processes, with `--nproc N`."""


COMMANDS = {
    "train": Command("train", "train a run, or go on with it", ranks=True),
    "find-lr": Command("find_lr", "find a learning rate for a run", ranks=True),
    "doctor": Command("doctor", "find what is wrong with machine, data or model", ranks=True),
    "compare": Command("compare", "show which of several runs is better, and why"),
    "evaluate": Command("evaluate", "measure a trained run: per class, confusion, mistakes"),
    "predict": Command("predict", "classify with a trained run, or go on with a text"),
    "export": Command("export", "write a trained model for other programs, such as ONNX"),
    "prepare": Command("prepare_data", "fetch data sets, or turn text into tokens"),
    "sweep": Command("sweep", "train a config many times: seeds, values, a search"),
    "watch": Command("watch", "serve a page in a browser that follows runs"),
    "submit": Command("submit", "train under Slurm: sites, arrays, chains, what jobs took"),
    "torture": Command("torture", "kill a run again and again, and compare the bits"),
    "benchmark": Command("benchmark", "measure Convoy and its peers (in the repository)"),
}
HELP = ("-h", "--help", "help")
VERSION = ("-V", "--version", "version")


def main() -> None:
    """Call the command that the first word names, with the rest, and leave with its status."""
    words = sys.argv[1:]
    if words[:1] == ["help"] and len(words) > 1:  # `convoy help train`
        words = [*words[1:], "--help"]
    if not words or words[0] in HELP:
        run_command(overview)
    if words[0] in VERSION:
        run_command(version)
    command = COMMANDS.get(words[0].replace("_", "-"))
    if command is None:
        run_command(refuse)
    sys.argv = [f"convoy {words[0]}", *words[1:]]
    if command.ranks:
        run_command(lambda argv: call(command, argv))
    run_command(importlib.import_module(f"{PREFIX}launch.{command.file}").main)


def overview(argv: Sequence[str]) -> int:
    """All commands, a line each."""
    print("usage: convoy COMMAND ...\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<11} {command.line}")
    several = ", ".join(name for name, command in COMMANDS.items() if command.ranks)
    print("\n`convoy COMMAND --help` says what it takes.")
    print(f"On several processes of this machine, with --nproc N: {several}.")
    return 0


def version(argv: Sequence[str]) -> int:
    """What a report of a fault begins with; nothing heavy is imported for it."""
    names = ("convoy", "torch")
    found = {
        item.name: item.version for name in names for item in metadata.distributions(name=name)
    }
    said = [f"{name} {found.get(name, 'not installed')}" for name in names]
    print(", ".join([*said, f"Python {platform.python_version()}"]))
    return 0


def refuse(argv: Sequence[str]) -> int:
    """Name the closest command.

    Raises:
        InputError: Always.
    """
    meant = did_you_mean(argv[0], COMMANDS)
    raise InputError(
        f"command {argv[0]!r}",
        expected=f"one of {', '.join(COMMANDS)}",
        remedy=f"{meant} `convoy --help` says what they do.".lstrip(),
    )


def call(command: Command, argv: Sequence[str]) -> int:
    """A command in this process, or with `--nproc` in several."""
    ranks, rest = split_ranks(argv)
    if ranks > 1 and not {"-h", "--help", "--print_config"} & set(rest):
        from launch.start_ranks import start_ranks

        return start_ranks(ranks, [*program_of(command.file), *rest])
    return int(importlib.import_module(f"{PREFIX}launch.{command.file}").main(rest))


def split_ranks(argv: Sequence[str]) -> tuple[int, list[str]]:
    """How many processes `--nproc` asks for (1 without it), and the other words.

    Raises:
        InputError: For what is no number, or under a launcher, which has started them already.
    """
    ranks, rest, words = 1, [], iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in ("--nproc", "--nproc_per_node", "--nproc-per-node"):
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if (launcher := guess(os.environ).launcher) != "python":
            raise InputError(option, expected=f"none under {launcher}, which has started the ranks")
        if not value.isdecimal() or int(value) < 1:
            raise InputError(option, given=value, expected="a number of processes, 1 or more")
        ranks = int(value)
    return ranks, rest


if __name__ == "__main__":
    main()
