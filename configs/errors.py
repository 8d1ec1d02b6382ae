"""The one error a user's input can cause."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from configs.visible import visible

ROOT = Path(__file__).resolve().parents[1]
HOUSE = tuple(f"{ROOT / room}/" for room in ("configs", "data", "trainer", "launch"))
NETWORKS = f"{ROOT / 'trainer/networks'}/"


class InputError(ValueError):
    """Bad config, file, checkpoint or environment: a command prints the message and exits 2.

    Control characters in names and paths are spelled out.

    Args:
        what: The thing at fault, such as a config key or a path.
        given: What was found there; omitted from the message when None.
        expected: What would have been accepted.
        remedy: What to do next, as a full sentence.
    """

    shared = False
    """Every rank raises this same error, so that one of them is enough to say it."""

    def __init__(
        self, what: str, *, given: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        parts = [f"given {given!r}"] if given is not None else []
        parts += [f"expected {expected}"] if expected else []
        message = what + (": " + ", ".join(parts) if parts else "")
        super().__init__(visible(message + (f". {remedy.strip()}" if remedy else "")))


def closest(given: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that are most like one that is not, whatever its case; the best first.

    Args:
        given: The name that is not known.
        known: Those that are.
        most: How many of them at most.
        cutoff: How like it they must be, from 0 to 1 (`difflib.get_close_matches`).
    """
    spelled = {name.lower(): name for name in known}
    return [spelled[n] for n in difflib.get_close_matches(given.lower(), spelled, most, cutoff)]


def did_you_mean(
    given: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6, prefix: str = ""
) -> str:
    """A remedy for a name that is not known: what is closest, after `prefix`; empty if nothing."""
    names = [repr(prefix + name) for name in closest(given, known, most, cutoff)]
    return f"Did you mean {' or '.join(names)}?" if names else ""


def one_line(error: BaseException, *, named: bool = False) -> str:
    """What an error says, or of what type it is if it says nothing: in a line of 300 characters at
    most, after its type if `named`, with control characters spelled out."""
    said = f"{type(error).__name__}: {error}" if named else str(error)
    return visible(" ".join(said.split())[:300] or type(error).__name__)


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type if it says nothing. As `one_line` else."""
    return visible((str(error).strip().splitlines() or [type(error).__name__])[0])


def closest_run(given: str) -> str:
    """A remedy for a run directory that is not there: a run beside it, or in runs/."""
    folders = filter(os.path.isdir, ("runs", str(Path(given).parent)))
    files = [path for folder in folders for path in Path(folder).glob("*/config.yaml")]
    names = {path.parent.name: str(path.parent) for path in files}
    close = closest(Path(given).name, names)
    return f"Did you mean {names[close[0]]!r}?" if close else ""


def failing_line(error: BaseException) -> str:
    """The last line of the user's code, or of a network of this project's, that an error passed
    through, such as "mine.py:12 `return self.layers(inputs)`"; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        of_network = name.startswith(NETWORKS) and not name.endswith("calling.py")
        if of_network or not ("site-packages" in name or name.startswith(HOUSE)):
            return f"{Path(name).name}:{frame.lineno} `{frame.line}`"
    return ""


def expect(config: object, key: str, holds: bool, expected: str, remedy: str = "") -> None:
    """Refuse the value that a config dataclass holds under `key` unless `holds`."""
    if not holds:
        given = getattr(config, key.rpartition(".")[2])
        raise InputError(key, given=given, expected=expected, remedy=remedy)
