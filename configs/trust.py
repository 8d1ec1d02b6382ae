"""Whose code may run: what a user names, and nothing that only a run directory names.

A run directory can come from anybody. Its config is read as data: names of this project's own
tables, of torch, torchvision and timm. What leads elsewhere needs `--trust_code`.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import InputError
from configs.given import is_given

FLAG = "--trust_code"
BESIDE = ("checkpoints", "metrics.jsonl", "summary.json", "environment.json", "model.json")
"""What tells a run directory from a folder of configs; it holds config.yaml, too."""
WORDS = re.compile(r"[\w.]+:[\w.]+")


@dataclass(frozen=True, slots=True)
class _Foreign:
    file: Path
    named: frozenset[str]
    """Import paths that the user gave, on the command line or in files of his own."""


_foreign: list[_Foreign] = []
"""The config of a run directory that this process works with; empty: all is the user's own."""


def lies_in_run(file: Path) -> bool:
    """Whether a config file is part of a run directory, a link to it too."""
    folder = file.resolve().parent
    return (folder / "config.yaml").is_file() and any((folder / n).exists() for n in BESIDE)


def judge(files: Sequence[Path], foreign: Sequence[Path], line: Sequence[str]) -> list[Path]:
    """Decide whose code may run from now on in this process; the latest decision holds.

    Args:
        files: All config files.
        foreign: Those of them that anybody may have written.
        line: The rest of the command line, which the user wrote.

    Returns:
        The files whose folders may hold modules.
    """
    own = [file for file in files if file not in foreign]
    texts = [*line, *(file.read_text("utf-8", "replace") for file in own)]
    named = frozenset(word for text in texts for word in WORDS.findall(text))
    _foreign[:] = [_Foreign(file, named) for file in foreign[:1]]
    return own


def require_trust(key: str, given: object) -> None:
    """Refuse what would run code, or read files that can, if only a run directory asks for it.

    Args:
        key: The config key.
        given: An import path, or another value that leads to code.

    Raises:
        InputError: With the key, the value, and the command to repeat.
    """
    for foreign in _foreign:
        if not (isinstance(given, str) and given in foreign.named):
            raise InputError(
                f"{key} in {foreign.file}",
                given=given,
                expected="a name of Convoy's own, because anybody may have written this directory",
                remedy="It would run code that the directory chose. If you know that code and "
                f"trust it, repeat: {repeated()}",
            )


def leads_to_code(value: object) -> bool:
    """Whether a value holds an import path, which a run directory may not name alone."""
    return not all(is_given(word) for word in WORDS.findall(str(value)))


def repeated() -> str:
    """The command of this process with the flag."""
    if sys.argv[0].startswith("convoy "):
        return f"{sys.argv[0]} {shlex.join([*sys.argv[1:], FLAG])}"
    return f"python {shlex.join([*sys.orig_argv[1:], FLAG])}"
