"""Every command of README.md and the guides, as a reader would type it."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.commands import COMMANDS as LIST
from launch.commands import split_ranks
from tests.support.processes import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "slurm/README.md",
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("convoy", "python", "torchrun", "make", "sbatch", "source", "pip", "accelerate")
NOT_A_SHELL = ("python", "yaml", "json")
"""Languages of fenced blocks that hold no commands."""


@dataclass(frozen=True)
class Command:
    """A command line of a page: its words, without comments and what stands before a pipe."""

    page: str
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    @property
    def plain(self) -> tuple[str, ...]:
        """The words with the file that `convoy NAME` calls, on one process."""
        if self.program != "convoy":
            return self.words
        found = LIST[self.words[1]]
        rest = split_ranks(self.words[2:])[1] if found.ranks else self.words[2:]
        return ("python", f"launch/{found.file}.py", *rest)

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def find_commands(text: str, page: str) -> Iterator[Command]:
    """Commands in fenced and indented blocks, and in code within a line if they start a script.

    Lines of options alone (`--key value`, as in a sweep file) count as those of launch/train.py.
    """
    blocks = [body for language, body in BLOCK.findall(text) if language not in NOT_A_SHELL]
    rest = BLOCK.sub("", text)
    blocks.append("\n".join(re.findall(r"^    (.*)$", rest, re.MULTILINE)))
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if re.match(r"(?:--|[\w./]+ )", line := line.strip().rpartition(" | ")[2]):
            words = _words(line)
            if words and (Path(words[0]).name in PROGRAMS or words[0].startswith("--")):
                yield Command(page, words)
    for span in SPAN.findall(re.sub(r"^    .*$", "", rest, flags=re.MULTILINE)):
        starts = re.match(rf"(?:{'|'.join(PROGRAMS)}) ", span)
        if starts and re.search(
            r"launch/\w|slurm/\w|benchmarks/\w|^make |^pip install|-m |^convoy ", span
        ):
            yield Command(page, _words(span))


def _words(line: str) -> tuple[str, ...]:
    """As a shell takes a line apart; a closing `...` stands for options of the reader's own."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return ()
    end = words.index(">") if ">" in words else len(words)
    return tuple(word for word in words[:end] if word != "...")


def all_commands() -> list[Command]:
    """Each command once, wherever it stands first."""
    found: dict[tuple[str, ...], Command] = {}
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        for command in find_commands(page.read_text(encoding="utf-8"), name):
            found.setdefault(command.words, command)
    return list(found.values())


@contextlib.contextmanager
def ends_well() -> Iterator[None]:
    """Around what may leave with status 0 before its end, after --help or --print_config."""
    try:
        yield
    except SystemExit as leaving:
        if leaving.code:
            raise
