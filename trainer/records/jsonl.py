"""metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from trainer.checkpoints.atomic_files import write_atomically
from trainer.records.sinks import Record, RunFacts

FILE_NAME = "metrics.jsonl"


class JsonlSink:
    """Appends every record; a continued run first drops the records that it will write again."""

    def __init__(self) -> None:
        self.file: TextIO | None = None

    def start(self, facts: RunFacts) -> None:
        path = facts.directory / FILE_NAME
        kept = [line for line in _lines(path) if _step(line) <= facts.first_step]
        write_atomically(path, "".join(kept), durable=False)
        self.file = path.open("a", encoding="utf-8")

    def record(self, record: Record) -> None:
        assert self.file is not None
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def finish(self, status: str) -> None:
        if self.file is not None:
            self.file.close()


def _lines(path: Path) -> list[str]:
    """The lines of a file with their ends; none if the file is not there."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """The step of a record; infinite for a line that a kill cut short."""
    if not line.endswith("\n"):
        return float("inf")
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
