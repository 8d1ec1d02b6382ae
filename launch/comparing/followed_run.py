"""How a run directory becomes a RunRecord, once or again and again while the run goes on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from configs.read_files import open_plain, parse_json, read_json, read_yaml
from launch.comparing.annotations import FILE as ANNOTATION
from launch.comparing.annotations import Annotation, read_annotation
from launch.comparing.history import History, numbers
from launch.comparing.run_record import (
    RunRecord,
    count_names,
    flatten_mapping,
    repeated_note,
    selection,
    short_commit,
)
from trainer.records.jsonl import FILE_NAME

if TYPE_CHECKING:
    from trainer.records.sinks import Record

CONFIG, ENVIRONMENT, SUMMARY = "config.yaml", "environment.json", "summary.json"
EVALUATION = "evaluation.json"
MOST_RECORDED_BYTES = 1 << 29
"""Of metrics.jsonl, or of an evaluation with a large confusion matrix."""
MOST_PICTURES = 8
COMPARED_BYTES = 1024
"""Of what was read last: a file in which they have changed is another one."""
Signature = tuple[int, int, int]


def is_run_directory(path: Path) -> bool:
    return any((path / name).is_file() for name in (FILE_NAME, SUMMARY, CONFIG))


def read_run_directory(path: Path) -> RunRecord:
    """Read OUTPUT_DIR/NAME/, also while the run is being written.

    Raises:
        InputError: If nothing has been recorded yet, or a file cannot be read.
    """
    return FollowedRun(path).read()


class GrowingRecords:
    """metrics.jsonl, of which each call of `update` reads what was appended since the one before.

    A continued run replaces the file, without the records it will write again: then all is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(0)

    def _begin(self, inode: int) -> None:
        self.inode = inode
        self.history = History()
        self.broken = 0
        """Lines that are no records."""
        self.end = 0
        """Bytes read: whole lines."""
        self.last = b""

    def update(self) -> None:
        """Raises InputError if the file cannot be read; without one there are no records."""
        try:
            fresh = self._read()
        except FileNotFoundError:
            self._begin(0)
            return
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot read {self.path} ({reason})") from None
        whole, newline, growing = fresh.rpartition(b"\n")
        self.end += len(whole) + len(newline)
        self.last = (self.last + whole + newline)[-COMPARED_BYTES:]
        for line in whole.split(b"\n"):
            if line.strip():
                row = parse_record(line)
                self.broken += row is None
                self.history.add(row) if row is not None else None
        # A line that lacks but its end may be a record already; read again, it is the same one.
        if (row := parse_record(growing)) is not None:
            self.history.add(row)

    def _read(self) -> bytes:
        with open_plain(self.path) as file:
            facts = os.fstat(file.fileno())
            if facts.st_size > MOST_RECORDED_BYTES:
                raise ValueError(f"it has more than {MOST_RECORDED_BYTES:,} bytes")
            file.seek(self.end - len(self.last))
            if facts.st_ino != self.inode or file.read(len(self.last)) != self.last:
                self._begin(facts.st_ino)
                file.seek(0)
            return file.read(MOST_RECORDED_BYTES)


class FollowedRun:
    """One run directory. A file that has not changed is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = GrowingRecords(path / FILE_NAME)
        self._seen: list[Signature | None] | None = None
        self._kept: dict[str, tuple[Signature | None, Any]] = {}

    def has_changed(self) -> bool:
        """Whether there is something that the last `read` has not seen."""
        return self._seen != self._signatures()

    def read(self) -> RunRecord:
        """The run as it is now.

        Raises:
            InputError: If nothing has been recorded yet, or a file cannot be read.
        """
        self._seen = self._signatures()
        self.records.update()
        history = self.records.history
        if not history.records:
            raise InputError(
                f"the run in {self.path} is empty",
                expected=f"records in {FILE_NAME}",
                remedy="Wait for its first record, or leave it out.",
            )
        config = self._once(CONFIG, lambda path: flatten_mapping(_read_yaml(path)))
        environment = self._once(ENVIRONMENT, _read_json)
        summary = self._once(SUMMARY, _read_json)
        evaluation = self._once(EVALUATION, _read_evaluation)
        annotation, notes = self._once(ANNOTATION, lambda path: _read_annotation(path.parent))
        if broken := self.records.broken:
            notes = [f"{broken} unreadable lines of {self.records.path} are left out", *notes]
        return RunRecord(
            name=str(config.get("name") or self.path.resolve().name),
            source=str(self.path),
            config=config,
            records=history.records,
            status=str(summary.get("status", "unknown")),
            execution=_execution(environment),
            git_commit=short_commit(environment.get("git_commit"), environment.get("git_dirty")),
            world_size=environment.get("world_size"),
            hardware=_hardware(environment),
            group=config.get("logging.wandb.group"),
            pictures=sorted(self.path.glob("*.png"))[:MOST_PICTURES],
            annotation=annotation,
            notes=notes + repeated_note(history.repeated),
            **selection(config, summary),
            **evaluation,
        )

    def _once(self, name: str, read: Callable[[Path], Any]) -> Any:
        """What was read from a file, as long as the file stays the same."""
        now = _signature(self.path / name)
        if name not in self._kept or self._kept[name][0] != now:
            self._kept[name] = now, read(self.path / name)
        return self._kept[name][1]

    def _signatures(self) -> list[Signature | None]:
        names = (FILE_NAME, CONFIG, ENVIRONMENT, SUMMARY, EVALUATION, ANNOTATION, "")
        return [_signature(self.path / name) for name in names]


def parse_record(line: bytes) -> Record | None:
    """The numbers of a line with a finite step; None if it is no such line."""
    try:
        row = parse_json(line.decode("utf-8", "replace"))
    except ValueError:
        return None
    record = numbers(row) if isinstance(row, dict) else {}
    return record if math.isfinite(record.get("step", math.nan)) else None


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _execution(environment: dict[str, Any]) -> dict[str, str]:
    found = environment.get("execution")
    ways = found.items() if isinstance(found, dict) else ()
    return {
        f"runs as: {name}": str(way["way"])
        for name, way in ways
        if isinstance(way, dict) and "way" in way
    }


def _hardware(environment: dict[str, Any]) -> str | None:
    gpus = environment.get("gpus")
    if environment.get("device") == "cuda" and isinstance(gpus, list) and gpus:
        return count_names([str(name) for name in gpus])
    cpu, count = environment.get("cpu"), environment.get("cpu_count")
    instructions = environment.get("cpu_capability")  # not in runs of before
    known = (cpu, f"{count} CPUs", instructions)
    return ", ".join(str(word) for word in known if word) if cpu else None


def _read_evaluation(path: Path) -> dict[str, Any]:
    """confusion, classes and mistakes, as a RunRecord has them."""
    evaluation = _read_json(path)
    classes, mistakes = evaluation.get("classes"), evaluation.get("mistakes")
    matrix = evaluation.get("confusion_matrix") or []
    square = isinstance(matrix, list) and all(
        isinstance(row, list) and len(row) == len(matrix) for row in matrix
    )
    if not square or not all(isinstance(count, int | float) for row in matrix for count in row):
        raise InputError(f"{path}: confusion_matrix", expected="a row of counts for every class")
    listed = mistakes if isinstance(mistakes, list) else []
    return {
        "confusion": matrix,
        "classes": [str(name) for name in classes] if isinstance(classes, list) else [],
        "mistakes": [entry for entry in listed if isinstance(entry, dict)],
    }


def _read_annotation(folder: Path) -> tuple[Annotation, list[str]]:
    """Notes that cannot be read are no reason to leave a run out."""
    try:
        return read_annotation(folder), []
    except InputError as error:
        return Annotation(), [str(error)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(path, read_json(path, most=MOST_RECORDED_BYTES))
    except FileNotFoundError:
        return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    content = read_yaml(path) if path.exists() else {}
    return _mapping(path, content if content is not None else {})


def _mapping(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(str(path), given=content, expected="a mapping")
    return content
