"""metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import BinaryIO

from configs.read_files import parse_json
from trainer.checkpoints.atomic_files import write_atomically
from trainer.records.sinks import Record, RunFacts

FILE_NAME = "metrics.jsonl"
log = logging.getLogger("convoy")


class JsonlSink:
    """Appends every record; a continued run first drops the records that it will write again."""

    def __init__(self) -> None:
        self.file: BinaryIO | None = None
        self.end = 0
        """Bytes of the file that are whole lines."""
        self.unwritten = b""
        """Lines that a full disk has refused; tried again with the next one."""
        self.refused = False

    def start(self, facts: RunFacts) -> None:
        path = facts.directory / FILE_NAME
        kept = [line for line in _lines(path) if not _is_void(line, facts)]
        write_atomically(path, "".join(kept), durable=False)
        self.file = path.open("r+b", buffering=0)
        self.end = self.file.seek(0, os.SEEK_END)

    def record(self, record: Record) -> None:
        self.unwritten += json.dumps(record).encode() + b"\n"
        self._write()

    def _write(self) -> None:
        """Append what is unwritten, whole or not at all.

        A disk that is full costs no run: that is said once, and every record comes when it can.
        """
        assert self.file is not None
        try:
            self.file.truncate(self.end)
            self.file.seek(self.end)
            written = self.file.write(self.unwritten)
            if written < len(self.unwritten):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self.refused:
                log.error("records wait for the disk (%s); training goes on", error.strerror)
            self.refused = True
            return
        self.end, self.unwritten, self.refused = self.end + written, b"", False

    def finish(self, status: str) -> None:
        if self.file is not None:
            if self.unwritten:
                self._write()
            self.file.close()


def _lines(path: Path) -> list[str]:
    """The lines of a file with their ends; none if the file is not there."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def _is_void(line: str, facts: RunFacts) -> bool:
    """Whether a record will be written again, or a kill cut it short."""
    try:
        record = parse_json(line) if line.endswith("\n") else {}
        step = float(record["step"])
    except (ValueError, KeyError, TypeError):
        return True
    again = any(key.partition("/")[0] in facts.void for key in record)
    return step > facts.first_step or (step == facts.first_step and again)
