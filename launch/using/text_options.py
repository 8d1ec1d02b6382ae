"""How text is asked for: the options of the command, checked before anything is loaded."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass

from configs.errors import InputError

STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int | None
    """Only so many of the likeliest tokens are drawn from; None: all."""
    seed: int
    max_tokens: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of text, beside those of pictures."""
    group = parser.add_argument_group("text, with a run on tokens")
    group.add_argument(
        "--prompt", metavar="TEXT", help="Go on with this text; - reads it from standard input."
    )
    group.add_argument(
        "--max_tokens", type=int, default=256, metavar="N", help="Tokens to write (default: 256)."
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="Below 1 likely tokens become likelier; 0 takes the likeliest one (default: 0.8).",
    )
    group.add_argument(
        "--top_k", type=int, metavar="K", help="Draw from the K likeliest tokens only."
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="S", help="Seed of the draws (default: 0)."
    )


def sampling(arguments: argparse.Namespace) -> Sampling:
    """The options, checked.

    Raises:
        InputError: For a number outside its range.
    """
    ranges = {
        "max_tokens": (arguments.max_tokens >= 1, "1 or more"),
        "temperature": (0 <= arguments.temperature < math.inf, "0 or more"),
        "top_k": (arguments.top_k is None or arguments.top_k >= 1, "1 or more"),
        "seed": (0 <= arguments.seed < 2**63, "0 to 2**63 - 1"),
    }
    values = {name: getattr(arguments, name) for name in ranges}
    for name, (holds, expected) in ranges.items():
        if not holds:
            raise InputError(f"--{name}", given=values[name], expected=expected)
    return Sampling(**values)


def read_prompt(given: str) -> str:
    """The prompt, from standard input if it is `-`.

    Raises:
        InputError: If standard input is no text.
    """
    if given != STDIN:
        return given
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: byte {error.start}", expected="text in UTF-8") from None
