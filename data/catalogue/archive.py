"""The files of a data set out of the archive it is published as: those asked for, nothing else."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from configs.errors import InputError, one_line
from data.catalogue.dataset_facts import ArchiveFacts

MOST_BYTES = 4 << 30
"""Of one member, unpacked."""
BROKEN = (
    *(OSError, EOFError, KeyError, ValueError, RuntimeError),  # a password, an unknown method
    *(zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
)


def extract(archive: Path, facts: ArchiveFacts, target: Path) -> list[Path]:
    """Take the members out of a verified archive into the folder `target`, and flush them.

    Members are asked for by name and written under their own names, so a path in the archive leads
    nowhere else; links and folders of those names are refused.

    Raises:
        InputError: If it is not the published archive, or cannot be read.
    """
    verify_archive(archive, facts)
    target.mkdir()
    try:
        with _opened(archive) as members:
            for name in facts.members:
                _copy(members, f"{facts.folder}/{name}", target / name)
    except BROKEN as error:
        reason = one_line(error)
        raise InputError(f"{archive} cannot be unpacked ({reason})") from None
    return [target / name for name in facts.members]


def verify_archive(archive: Path, facts: ArchiveFacts) -> None:
    """Check the SHA-256 of an archive.

    Raises:
        InputError: If it is another one.
    """
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != facts.sha256:
        raise InputError(
            f"{archive} is not the published archive: SHA-256",
            given=found,
            expected=facts.sha256,
            remedy="Fetch it again, or move it away.",
        )


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    else:
        with tarfile.open(archive) as tar:
            yield tar


def _copy(members: tarfile.TarFile | zipfile.ZipFile, name: str, path: Path) -> None:
    if isinstance(members, zipfile.ZipFile):
        size = members.getinfo(name).file_size
        source: IO[bytes] | None = members.open(name)
    else:
        member = members.getmember(name)
        size = member.size
        source = members.extractfile(member) if member.isreg() and not member.issparse() else None
    if source is None:
        raise OSError(f"{name} is no file")
    if size > MOST_BYTES:
        raise OSError(f"{name} has {size:,} bytes")
    with source, path.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
