"""Which collectives a rank has begun, by torch's flight recorder.

https://docs.pytorch.org/tutorials/unstable/flight_recorder_tutorial.html
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

RECENT = 200
"""Latest collectives of a rank that are compared with those of others."""
TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective as a rank began it."""

    group: str
    """Name of the process group."""
    number: int
    """How many of that group it is, from 1 on, on every rank."""
    name: str
    """Such as all_reduce."""
    sizes: str
    """Of its tensors, such as `24x16`."""
    place: str
    """The line of code that asked for it; empty if none did, as in a backward pass."""

    def __str__(self) -> str:
        what = f"{self.name} of {self.sizes}" if self.sizes else self.name
        return f"{what}, {self.place}" if self.place else what

    @property
    def kind(self) -> tuple[str, str]:
        """What all ranks must agree on."""
        return self.name, self.sizes


def dump(backend: str) -> bytes:
    """All that the recorder of this rank has, as torch's own tools read it (`torchfrtrace`)."""
    from torch._C import _distributed_c10d as c10d

    call = getattr(c10d, "_dump_nccl_trace" if "nccl" in backend else "_dump_fr_trace")
    with _without_compiler():
        dumped: bytes = call(True, True, False)
    return dumped


def status(backend: str) -> bytes:
    """The numbers of the latest collectives of each group, as JSON. Takes some 0.1 ms."""
    from torch._C import _distributed_c10d as c10d

    name = "_dump_nccl_trace_json" if "nccl" in backend else "_dump_fr_trace_json"
    found: bytes | str = getattr(c10d, name)(False, True)
    return found if isinstance(found, bytes) else found.encode()


def is_pending(found: bytes) -> bool:
    """Whether a status has a collective that has begun and not ended."""
    groups = json.loads(found).get("pg_status", {}).values()
    return any(
        int(group["last_enqueued_collective"]) > int(group["last_completed_collective"])
        for group in groups
    )


@contextmanager
def _without_compiler() -> Iterator[None]:
    """The recorder looks for code that inductor wrote, and would import it for that: seconds in
    which the others wait for an answer."""
    stand_in = ModuleType("torch._inductor")
    if "torch._inductor" not in sys.modules:
        vars(torch)["_inductor"] = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_inductor") is stand_in:
            del vars(torch)["_inductor"]


def recent(dumped: bytes) -> list[Collective]:
    """The latest collectives in what this very process has dumped."""
    entries = pickle.loads(dumped).get("entries", [])
    return [_collective(entry) for entry in entries if not entry.get("is_p2p")][-RECENT:]


def _collective(entry: Mapping[str, Any]) -> Collective:
    sizes = entry.get("input_sizes") or []
    return Collective(
        group=str(entry["process_group"][0]),
        number=int(entry["collective_seq_id"]),
        name=str(entry["profiling_name"]).rpartition(":")[2],
        sizes=", ".join("x".join(map(str, size)) or "1" for size in sizes),
        place=_place(entry.get("frames") or []),
    )


def _place(frames: Sequence[Mapping[str, Any]]) -> str:
    """The innermost line that is not torch's own."""
    for frame in frames:
        file = str(frame["filename"])
        if file.endswith(".py") and not file.startswith(TORCH):
            return f"{file}:{frame['line']} in {frame['name']}"
    return ""
