"""What the commands that use a trained run share: how it is named, and which keys may change."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import InputError
from configs.trust import FLAG
from launch.entry import called, num_ranks
from launch.using.named_run import follow_run

if TYPE_CHECKING:
    from launch.using.trained import Trained


def build_run_parser(name: str, description: str, groups: Sequence[str]) -> argparse.ArgumentParser:
    """A parser with RUN and `--checkpoint`; `groups` of config keys may be overridden beside it."""
    keys = ", ".join(f"--{group}.KEY" for group in groups)
    parser = argparse.ArgumentParser(
        prog=called(f"{name}.py"),
        description=description,
        allow_abbrev=False,
        epilog=f"Config keys that may differ from the run's: {keys}." if groups else None,
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="Run directory, such as runs/mnist, or one of its checkpoints.",
    )
    parser.add_argument(
        "--checkpoint",
        help="Which checkpoint of the run: best (the default), latest, or the path of one.",
    )
    parser.add_argument(
        FLAG,
        action="store_true",
        help="Let the run directory name code that is not Convoy's, such as a model of your own, "
        "and run it. Without it nothing in the directory can (docs/security.md).",
    )
    return parser


def parse_run_arguments(parser: argparse.ArgumentParser, own: Sequence[str]) -> argparse.Namespace:
    """The arguments, of a run that is there: found out before what takes seconds to import.

    Raises:
        InputError: If it is not, or several ranks were started.
    """
    arguments = parser.parse_args(own)
    if num_ranks() > 1:
        raise InputError(
            "ranks",
            given=num_ranks(),
            expected="one process",
            remedy="Start this command with plain python.",
        )
    follow_run(arguments.run)
    return arguments


def split_overrides(argv: Sequence[str], groups: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell config keys (dotted options) from the command's own arguments.

    Returns:
        The command's own arguments, and the overrides with their values.

    Raises:
        InputError: For a key outside the groups, or a key without a value.
    """
    own: list[str] = []
    overrides: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        option, equals, _ = token.partition("=")
        if not (option.startswith("--") and "." in option):
            own.append(token)
            continue
        if option[2:].partition(".")[0] not in groups:
            raise InputError(
                option,
                expected=f"a key of {', '.join(groups)}" if groups else "no config key here",
                remedy="Everything else is as the run was trained.",
            )
        overrides.append(token)
        if not equals:
            value = next(tokens, None)
            if value is None:
                raise InputError(option, expected="a value after it")
            overrides.append(value)
    return own, overrides


def positive(text: str) -> int:
    """An option's whole number, 1 or more."""
    return _number(text, 1)


def not_negative(text: str) -> int:
    """An option's whole number, 0 or more."""
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"given {text!r}, expected a whole number, {least} or more"
        )
    return number


def load_run(arguments: argparse.Namespace, overrides: Sequence[str]) -> Trained:
    """The trained run that the arguments name.

    Raises:
        InputError: If it cannot be used.
    """
    from launch.using.trained import load_trained
    from trainer.ranks.host_memory import keep_freed_memory

    trained = load_trained(
        arguments.run,
        checkpoint=arguments.checkpoint,
        overrides=overrides,
        trust_code=arguments.trust_code,
    )
    keep_freed_memory(trained.runtime.device)
    return trained
