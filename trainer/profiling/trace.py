"""The events of a trace, as torch.profiler writes it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a trace; times in microseconds."""

    name: str
    kind: str
    """cpu_op, user_annotation, kernel, ..."""
    thread: int | str
    start: float
    stop: float
    link: int | None = None
    """Of a kernel and of the operator that launched it."""


def read_trace(path: Path) -> list[Event]:
    """The complete events of a Chrome trace as torch.profiler exports it, gzipped or not."""
    raw = path.read_bytes()
    content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    return [
        Event(
            name=item["name"],
            kind=item.get("cat", ""),
            thread=item.get("tid", 0),
            start=float(item["ts"]),
            stop=float(item["ts"]) + float(item["dur"]),
            link=item.get("args", {}).get("External id"),
        )
        for item in content["traceEvents"]
        if item.get("ph") == "X"
    ]
