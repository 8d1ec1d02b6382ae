"""Checkpoints in parts: every rank writes what it holds, and any number of ranks read them again.

A part is a file of safetensors. Its header says, besides, of which tensor each entry holds rows,
and from which one on: so nothing but the parts is needed to put the tensors together.

`torch.distributed.checkpoint` was weighed (docs/architecture.md): it has neither digests nor a
marker that says that all of a checkpoint is there.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import struct
import time
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from configs.read_files import parse_json
from trainer.checkpoints.atomic_files import flush_to_disk, write_atomically
from trainer.engines.dtensor import cut_by_rows, is_sharded, own_rows, replica

PART = re.compile(r"part_(\d{5})_of_(\d{5})\.safetensors")
LAYOUT = "layout"
"""Where in the header of a part it says what its entries are rows of."""
POLL_SECONDS = 0.02
MOST_HEADER_BYTES = 100_000_000
"""That a reader of safetensors takes."""


@dataclass(slots=True)
class Part:
    """What one rank writes: rows of tensors by name, in host memory."""

    rank: int
    count: int
    """Ranks, each of which writes a part."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    layout: dict[str, tuple[list[int], int]] = field(default_factory=dict)
    """Shape of the whole tensor, and which of its rows is the first here."""
    seen: int = 0
    """Sharded tensors so far: as many on every rank."""

    @property
    def name(self) -> str:
        return f"part_{self.rank:05d}_of_{self.count:05d}.safetensors"

    def take(
        self, prefix: str, state: Mapping[Any, Any], *, plain: bool, scalars: Container[str] = ()
    ) -> dict[Any, Any]:
        """Copy what this rank has to write of a mapping: its rows of what is sharded.

        Copies of the same rows take turns. Of tensors that every rank has, rank 0 writes its own.

        Args:
            prefix: Before the names.
            state: Tensors and other values by name.
            plain: Whether tensors that are not sharded go in as well.
            scalars: Names of what is sharded and has no dimension; see `engines.scalars`.

        Returns:
            The rest of the mapping: what goes into no part.
        """
        rest = {}
        for name, value in state.items():
            if is_sharded(value):
                value = cut_by_rows(value)
                number, copies = replica(value)
                start, stop = own_rows(value)
                mine = stop > start or (self.rank == 0 and not value.shape[0])
                if mine and self.seen % copies == number:
                    shape = torch.Size() if name in scalars else value.shape
                    self._keep(f"{prefix}/{name}", value.to_local(), shape, start)
                self.seen += 1
            elif isinstance(value, Tensor) and plain:
                if self.rank == 0:
                    self._keep(f"{prefix}/{name}", value, value.shape, 0)
            else:
                rest[name] = value
        return rest

    def _keep(self, key: str, local: Tensor, shape: torch.Size, start: int) -> None:
        self.tensors[key] = local.detach().to("cpu", copy=True).contiguous()
        self.layout[key] = (list(shape), start)


def write_part(folder: Path, part: Part) -> None:
    """Write a part to a folder, flushed to disk, and beside it a note of its digest, or of why not.

    Raises:
        OSError: If the disk is full or gone.
    """
    path = folder / part.name
    try:
        digest = hashlib.sha256()
        with path.open("xb") as file:
            _write(file, part, digest)
        flush_to_disk(path)
        note: dict[str, Any] = {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
        write_atomically(_note(path), json.dumps(note))
    except OSError as error:
        path.unlink(missing_ok=True)  # makes room for the note
        if folder.is_dir():
            write_atomically(_note(path), json.dumps({"error": error.strerror or str(error)}))
        raise


def _write(file: BinaryIO, part: Part, digest: Any) -> None:
    """The format of safetensors, tensor by tensor: its own writer copies all of them before."""
    names = type_names()
    entries, offset = {}, 0
    # Large elements first, so that each lies at a multiple of its size.
    ordered = sorted(part.tensors.items(), key=lambda item: -item[1].itemsize)
    for key, tensor in ordered:
        end = offset + tensor.nbytes
        entries[key] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    metadata = {"format": "pt", LAYOUT: json.dumps(part.layout)}
    header = json.dumps({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)
    for block in (struct.pack("<Q", len(header)), header):
        file.write(block)
        digest.update(block)
    for _, tensor in ordered:
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        file.write(content)
        digest.update(content)


def collect_notes(folder: Path, count: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Wait until every rank has written its part; the notes are gone afterwards.

    Args:
        folder: Where parts are being written.
        count: Number of ranks.
        seconds: How long to wait at most.

    Returns:
        Digest and size of each part, by its name.

    Raises:
        OSError: If a rank could not write its part, or does not answer.
    """
    missing = {Part(rank, count).name: rank for rank in range(count)}
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + seconds
    while missing:
        for name in [name for name in missing if _note(folder / name).exists()]:
            rank, note = missing.pop(name), json.loads(_note(folder / name).read_text())
            if "error" in note:
                raise OSError(f"rank {rank} could not write {name}: {note['error']}")
            found[name] = note
            _note(folder / name).unlink()
        if missing and time.monotonic() > deadline:
            raise OSError(f"rank {min(missing.values())} has not written its part in {seconds} s")
        if missing:
            time.sleep(POLL_SECONDS)
    return dict(sorted(found.items()))


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def prepare_folder(folder: Path) -> None:
    """An empty folder, before any rank writes its part into it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def complete_parts(names: Iterable[str]) -> bool:
    """Whether these are all parts of one checkpoint: 0 to n - 1 of n."""
    found = [match for match in map(PART.fullmatch, names) if match]
    counts = {int(match[2]) for match in found}
    return len(counts) == 1 and {int(m[1]) for m in found} == set(range(counts.pop()))


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a tensor in a part."""

    path: Path
    start: int
    stop: int
    offset: int
    """Bytes from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose rows lie in the parts of a checkpoint; see `dtensor.Stored`."""

    shape: torch.Size
    dtype: torch.dtype
    pieces: tuple[Piece, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        inner = self.shape[1:]
        found = torch.empty((stop - start, *inner), dtype=self.dtype)
        row_bytes = math.prod(inner) * self.dtype.itemsize
        buffer = found.reshape(-1).view(torch.uint8).numpy().data
        for piece in self.pieces:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if last <= first or not row_bytes:
                continue
            with piece.path.open("rb", buffering=0) as file:
                file.seek(piece.offset + (first - piece.start) * row_bytes)
                target = buffer[(first - start) * row_bytes : (last - start) * row_bytes]
                done = 0
                while done < len(target):  # one read gives 2 GiB at most
                    count = file.readinto(target[done:])
                    if not count:
                        raise ValueError(f"{piece.path.name} ends too early")
                    done += count
        return found


def open_parts(parts: Sequence[Path]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint in parts, by name; nothing but headers is read.

    Raises:
        ValueError: If the parts are damaged, or do not give every row of each tensor once.
        OSError: If one cannot be read.
    """
    shapes: dict[str, torch.Size] = {}
    types: dict[str, torch.dtype] = {}
    pieces: dict[str, list[Piece]] = defaultdict(list)
    _expect(complete_parts(path.name for path in parts), "the parts are not all of one checkpoint")
    for path in parts:
        for name, shape, dtype, piece in _open_part(path):
            known = shapes.setdefault(name, shape), types.setdefault(name, dtype)
            _expect(known == (shape, dtype), f"{name} has several shapes or types")
            pieces[name].append(piece)
    found = {}
    for name, shape in shapes.items():
        ordered = sorted(pieces[name], key=lambda piece: piece.start)
        ends = [0, *(piece.stop for piece in ordered)]
        joined = all(p.start == end for p, end in zip(ordered, ends, strict=False))
        rows = shape[0] if shape else 1
        _expect(joined and ends[-1] == rows, f"rows of {name} are missing or there twice")
        found[name] = StoredTensor(shape, types[name], tuple(ordered))
    return found


def _open_part(path: Path) -> list[tuple[str, torch.Size, torch.dtype, Piece]]:
    """The entries of a part: name, shape of the whole tensor, type, and the rows that lie here."""
    from safetensors import safe_open

    with safe_open(path, framework="pt"):  # refuses a header that does not suit the file
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        _expect(length <= MOST_HEADER_BYTES, f"the header of {path.name} is too long")
        header = parse_json(file.read(length).decode())
    layout = parse_json(header.pop("__metadata__")[LAYOUT])
    types = {name: dtype for dtype, name in type_names().items()}
    found = []
    for name, entry in header.items():
        shape, start = layout[name]
        plain = [start, *shape]
        sound = all(type(number) is int and number >= 0 for number in plain)
        _expect(sound and entry["shape"][1:] == shape[1:], f"{name} in {path.name} has no shape")
        rows = entry["shape"][0] if entry["shape"] else 1
        piece = Piece(path, start, start + rows, 8 + length + entry["data_offsets"][0])
        found.append((name, torch.Size(shape), types[entry["dtype"]], piece))
    return found


def type_names() -> dict[torch.dtype, str]:
    """What safetensors calls the types of torch."""
    from safetensors.torch import _TYPES

    return {dtype: name for name, dtype in _TYPES.items() if dtype is not None}


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
