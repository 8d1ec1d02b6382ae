"""Find the files of a catalogue data set, else download, verify and publish them atomically."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

from configs.errors import InputError
from data.catalog import ROLES, DatasetFacts, FileFacts
from data.idx import GZIP_MAGIC, digest_error, read_idx

ROUNDS = 3
"""How often every mirror is tried for one file."""
TIMEOUT_SECONDS = 30.0

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes received and the bytes expected."""


def cache_folder(facts: DatasetFacts) -> Path:
    """Where downloads go without a data.root: $XDG_CACHE_HOME/convoy/NAME."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convoy" / facts.name


def find_files(facts: DatasetFacts, root: str | None) -> dict[str, Path] | None:
    """The four files by role, or None unless one folder holds them all.

    With a root only that folder and its subfolder NAME are searched; without one, the embedded
    files and then the cache.
    """
    if root is not None:
        folders = [Path(root).expanduser(), Path(root).expanduser() / facts.name]
    else:
        folders = [*([facts.embedded] if facts.embedded else []), cache_folder(facts)]
    for folder in folders:
        found = {role: _find_one(folder, facts.files[role].name) for role in ROLES}
        paths = {role: path for role, path in found.items() if path is not None}
        if len(paths) == len(ROLES):
            return paths
    return None


def acquire(
    facts: DatasetFacts,
    root: str | None,
    *,
    download: bool = True,
    mirrors: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The four files by role, downloaded if need be; one process per node downloads, others wait.

    Args:
        facts: The data set.
        root: Folder to search and to download to, or None for the cache.
        download: Whether missing files may be fetched.
        mirrors: Base addresses to try instead of the catalogue's.
        progress: Told of every received chunk.

    Raises:
        InputError: If the files are neither here nor to be had; the message says what to place
            where.
    """
    if found := find_files(facts, root):
        return found
    if root is not None and not Path(root).expanduser().is_dir():
        raise InputError("data.root", given=root, expected="a folder that exists")
    folder = Path(root).expanduser() / facts.name if root else cache_folder(facts)
    if not download:
        raise _missing(facts, folder, ["data.download is false"])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{facts.name}.lock"):
            if found := find_files(facts, root):
                return found
            _download_all(facts, folder, mirrors or facts.mirrors, progress)
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror})",
            expected="a folder to download to",
            remedy="Choose another with --data.root.",
        ) from None
    found = find_files(facts, root)
    assert found is not None
    return found


def verify_published(path: Path, facts: FileFacts) -> None:
    """Check a file without a known content digest: a .gz must be the published .gz.

    Raises:
        InputError: If it is another file.
    """
    content = path.read_bytes()
    if content[:2] == GZIP_MAGIC:
        found = hashlib.sha256(content).hexdigest()
        if found != facts.gz_sha256:
            raise digest_error(path, found, facts.gz_sha256)


def _find_one(folder: Path, name: str) -> Path | None:
    stem, _, suffix = name.rpartition("-idx")
    for candidate in (name, f"{name}.gz", f"{stem}.idx{suffix}", f"{stem}.idx{suffix}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download_all(
    facts: DatasetFacts, folder: Path, mirrors: tuple[str, ...], progress: Progress | None
) -> None:
    """Fetch into a temporary folder; a file appears in `folder` whole and verified or never."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        fetched = [
            _download_one(facts, file, Path(temporary), mirrors, folder, progress)
            for file in facts.files.values()
        ]
        folder.mkdir(exist_ok=True)
        for path in fetched:
            os.replace(path, folder / path.name)


def _download_one(
    facts: DatasetFacts,
    file: FileFacts,
    temporary: Path,
    mirrors: tuple[str, ...],
    folder: Path,
    progress: Progress | None,
) -> Path:
    target = temporary / f"{file.name}.gz"
    failures: list[str] = []
    for attempt in range(ROUNDS):
        for mirror in mirrors:
            url = f"{mirror.rstrip('/')}/{file.name}.gz"
            try:
                found = _fetch(url, target, file, progress)
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
                continue
            if found == file.gz_sha256:
                if file.sha256 is not None:
                    read_idx(target, sha256=file.sha256)
                return target
            failures.append(f"{url}: SHA-256 {found}, expected {file.gz_sha256}")
        if attempt + 1 < ROUNDS:
            time.sleep(0.5 * 2**attempt)
    raise _missing(facts, folder, failures[-len(mirrors) :])


def _fetch(url: str, target: Path, file: FileFacts, progress: Progress | None) -> str:
    """Download one address to `target`; returns the SHA-256 of what came."""
    digest = hashlib.sha256()
    received = 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, target.open("wb") as out:
        while chunk := response.read(1 << 16):
            out.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if progress is not None:
                progress(file.name, received, file.gz_bytes)
            if received > file.gz_bytes:
                raise ValueError(f"more than the {file.gz_bytes} bytes expected")
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _missing(facts: DatasetFacts, folder: Path, reasons: list[str]) -> InputError:
    names = ", ".join(f"{file.name}.gz" for file in facts.files.values())
    return InputError(
        f"data set {facts.name!r} is not on this machine and could not be fetched "
        f"({'; '.join(reasons)})",
        expected=f"{names} (or without .gz) in {folder}",
        remedy="On a machine with a network run `python launch/prepare_data.py "
        f"{facts.name}`, or place the files there by hand, or point --data.root at them.",
    )
