"""Texts from outside, shown so that no terminal and no spreadsheet obeys them."""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that a terminal acts on, or that are no text."""
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
FORMULA = re.compile(r"\s*[=+\-@\t\r]")


def visible(text: object) -> str:
    """The text with control characters and changes of direction spelled out, as in `\\x1b`.

    Ends of lines and tabs stay.
    """
    found = str(text)
    if found.isprintable():
        return found
    return "".join(
        char.encode("unicode_escape").decode() if is_unseen(char) and char not in "\n\t" else char
        for char in found
    )


def is_unseen(char: str) -> bool:
    """Whether a character moves the cursor, turns the text around, or is none."""
    return char in DIRECTIONS or unicodedata.category(char) in UNSEEN


def plain(text: object, style: str = "") -> Text:
    """For rich: shown as it is, without markup."""
    from rich.text import Text

    return Text(visible(text), style=style)


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file: a text that a spreadsheet would take for a formula gets a quote before
    it. Numbers stay as they are.
    """
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


class LogLines(logging.Handler):
    """The log on what is `sys.stderr` at that moment: a progress bar gives way to its lines, and
    names and paths in them cannot move the cursor."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(visible(self.format(record)), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
