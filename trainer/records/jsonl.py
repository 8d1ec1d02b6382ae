"""metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from configs.read_files import parse_json
from trainer.checkpoints.atomic_files import write_atomically
from trainer.records.append_file import AppendFile

if TYPE_CHECKING:
    from trainer.records.sinks import Record, RunFacts

FILE_NAME = "metrics.jsonl"


class JsonlSink:
    """Appends every record; a continued run first drops the records that it will write again."""

    def __init__(self) -> None:
        self.file: AppendFile | None = None

    def start(self, facts: RunFacts) -> None:
        path = facts.directory / FILE_NAME
        kept = [line for line in _lines(path) if not _is_void(line, facts)]
        write_atomically(path, "".join(kept), durable=False)
        self.file = AppendFile(path)

    def record(self, record: Record) -> None:
        assert self.file is not None
        self.file.append(json.dumps(record).encode() + b"\n")

    def finish(self, status: str) -> None:
        if self.file is not None:
            self.file.close()


def _lines(path: Path) -> list[str]:
    """The lines of a file with their ends; none if the file is not there."""
    if not path.exists():
        return []
    return [f"{line}\n" for line in path.read_text("utf-8", "replace").split("\n")[:-1]]


def _is_void(line: str, facts: RunFacts) -> bool:
    """Whether a record will be written again, or is none."""
    try:
        record = parse_json(line)
        step = float(record["step"])
    except (ValueError, KeyError, TypeError):
        return True
    again = any(key.partition("/")[0] in facts.void for key in record)
    return step > facts.first_step or (step == facts.first_step and again)
