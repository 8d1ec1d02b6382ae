"""An offline W&B directory -> RunRecord, without a network, also while it is being written.

A .wandb file is seven bytes of header, then a LevelDB log: blocks of 32 KiB that hold chunks of
(CRC-32, length, kind, payload), whose payloads make up protobuf messages.
https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.imports import pip_line
from configs.read_files import parse_json
from launch.comparing.history import build_history, from_wandb
from launch.comparing.run_record import (
    RunRecord,
    count_names,
    flatten_mapping,
    repeated_note,
    selection,
    short_commit,
)

MAGIC, FILE_HEADER_BYTES, BLOCK_BYTES = b":W&B", 7, 32768
CHUNK_HEADER = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
INSTALL = f"Install it with `{pip_line('wandb')}`."


@dataclass(slots=True)
class Offline:
    """What the files of one W&B run say, later files over earlier ones."""

    folders: list[Path]
    run_id: str = ""
    name: str = ""
    group: str = ""
    commit: str = ""
    hardware: str = ""
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def find_wandb_files(path: Path) -> list[Path]:
    """The .wandb files a path means: itself, that of a run's folder, or all below `wandb/`."""
    if path.suffix == ".wandb" and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    return sorted(path.glob("run-*.wandb")) or sorted(path.glob("*run-*/run-*.wandb"))


def read_offline(files: list[Path]) -> list[RunRecord]:
    """Read .wandb files; those of one W&B run, which restarts leave, become one RunRecord.

    Raises:
        InputError: If a file is damaged or holds no history, or wandb is not installed.
    """
    merged: dict[str, Offline] = {}
    # The names of the folders begin with the time at which each was started.
    for path in sorted(files, key=lambda path: path.parent.name.removeprefix("offline-")):
        found = _read_file(path)
        if (earlier := merged.get(found.run_id)) is None:
            merged[found.run_id] = found
        else:
            _continue(earlier, found)
    return [_to_run(offline) for offline in merged.values()]


def split_facts(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take what the sink adds about a run's execution out of a W&B config."""
    flat = {key: v for key, v in flatten_mapping(config).items() if not key.startswith("_wandb")}
    names = ("git_commit", "world_size")
    facts = {name: flat.pop(name) for name in names if name in flat}
    return flat, facts


def read_messages(data: bytes, path: Path) -> Iterator[bytes]:
    """The payloads of a .wandb file, up to where writing has come.

    Raises:
        InputError: If it is not such a file, or a chunk before the last is damaged.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise InputError(f"{path} is not a W&B file", expected="one that wandb wrote")
    at, pending = FILE_HEADER_BYTES, b""
    while at + CHUNK_HEADER.size <= len(data):
        room = BLOCK_BYTES - at % BLOCK_BYTES
        if room < CHUNK_HEADER.size:  # the end of a block is padding
            at += room
            continue
        checksum, length, kind = CHUNK_HEADER.unpack_from(data, at)
        payload = data[at + CHUNK_HEADER.size : at + CHUNK_HEADER.size + length]
        end = at + CHUNK_HEADER.size + length
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or zlib.crc32(bytes([kind]) + payload) != (
            checksum
        ):
            if end >= len(data) or not any(data[at:]):  # still being written
                return
            raise InputError(f"{path} is damaged at byte {at}", expected="an intact W&B file")
        pending = payload if kind in (WHOLE, FIRST) else pending + payload
        if kind in (WHOLE, LAST):
            yield pending
        at = end


def _read_file(path: Path) -> Offline:
    try:
        from wandb.proto import wandb_internal_pb2 as protobuf
    except ImportError:
        raise InputError(f"reading {path} needs wandb", remedy=INSTALL) from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from None
    found = Offline(folders=[path.parent])
    message_type: Any = vars(protobuf)["Record"]  # which type checkers do not see
    for message in read_messages(data, path):
        _add_record(found, message_type.FromString(message))
    return found


def _add_record(found: Offline, record: Any) -> None:
    """Add one protobuf message to what is known."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run = record.run
        found.run_id, found.name = run.run_id, run.display_name or found.name
        found.group, found.commit = run.run_group or found.group, run.git.commit or found.commit
        _update(found.config, run.config)
        _update(found.summary, run.summary)
    elif kind == "config":
        _update(found.config, record.config)
    elif kind == "summary":
        _update(found.summary, record.summary)
    elif kind == "history":
        found.rows.append({_key(item): parse_json(item.value_json) for item in record.history.item})
    elif kind == "environment":
        found.commit = found.commit or record.environment.git.commit
        found.hardware = _hardware(record.environment) or found.hardware
    elif kind == "exit":
        found.exit_code = record.exit.exit_code


def _update(known: dict[str, Any], change: Any) -> None:
    for item in change.update:
        known[_key(item)] = parse_json(item.value_json)
    for item in change.remove:
        known.pop(_key(item), None)


def _key(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def _hardware(environment: Any) -> str:
    names = [gpu.name for gpu in [*environment.gpu_nvidia, *environment.gpu_amd] if gpu.name]
    if names:
        return count_names(names)
    model, count = environment.cpu.model, environment.cpu_count_logical
    return f"{model}, {count} CPUs" if model else ""


def _continue(earlier: Offline, later: Offline) -> None:
    earlier.folders += later.folders
    for name in ("name", "group", "commit", "hardware"):
        setattr(earlier, name, getattr(later, name) or getattr(earlier, name))
    earlier.config |= later.config
    earlier.summary |= later.summary
    earlier.rows += later.rows
    earlier.exit_code = later.exit_code


def _to_run(found: Offline) -> RunRecord:
    source = str(found.folders[-1])
    history = build_history(from_wandb(found.rows))
    if not history.records:
        raise InputError(
            f"the W&B run in {source} is empty",
            expected="at least one wandb.log() of a number",
            remedy="Wait for its first record, or leave it out.",
        )
    ended = {None: "running", 0: "completed"}.get(found.exit_code, "failed")
    config, facts = split_facts(found.config)
    status = found.summary.get("status") if found.exit_code is not None else None
    return RunRecord(
        name=found.name or found.run_id,
        source=source,
        config=config,
        records=history.records,
        status=str(status or ended),
        git_commit=short_commit(facts.get("git_commit") or found.commit),
        world_size=facts.get("world_size"),
        hardware=found.hardware or None,
        group=found.group or None,
        notes=repeated_note(history.repeated),
        **selection(config, {}),
    )
