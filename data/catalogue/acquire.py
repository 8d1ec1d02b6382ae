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
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from configs.errors import InputError
from data.catalogue.archive import extract
from data.catalogue.dataset_facts import DatasetFacts, FileFacts
from data.formats.idx import GZIP_MAGIC, digest_error, read_idx
from data.lock_file import lock_of

ROUNDS = 3
"""How often every mirror is tried for one file."""
TIMEOUT_SECONDS = 30.0
SLOWEST = 1024
"""Bytes a second; a mirror that keeps sending less is left after TIMEOUT_SECONDS."""

Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes received and the bytes expected."""


def cache_folder(facts: DatasetFacts) -> Path:
    """The folder of downloads without a data.root: $XDG_CACHE_HOME/convoy/NAME."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convoy" / facts.folder


def download_folder(facts: DatasetFacts, root: str | None) -> Path:
    """The folder that files of a data set are downloaded to."""
    return Path(root).expanduser() / facts.folder if root else cache_folder(facts)


def find_files(facts: DatasetFacts, root: str | None) -> dict[str, Path] | None:
    """The files by role, or None unless one folder holds them all.

    With a root only that folder and its subfolder NAME are searched, and below them the folder that
    an archive unpacks to; without one, the embedded files and then the cache.
    """
    folders = _folders(facts, root)
    if facts.archive is not None:
        inner = facts.archive.folder
        folders = [path for folder in folders for path in (folder, folder / inner)]
    for folder in folders:
        found = {role: _find_one(folder, file.name) for role, file in facts.files.items()}
        paths = {role: path for role, path in found.items() if path is not None}
        if len(paths) == len(facts.files):
            return paths
    return None


def _folders(facts: DatasetFacts, root: str | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser(), download_folder(facts, root)]
    return [*([facts.embedded] if facts.embedded else []), cache_folder(facts)]


def acquire(
    facts: DatasetFacts,
    root: str | None,
    *,
    download: bool = True,
    mirrors: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """The files by role, downloaded if need be; one process per node downloads, others wait.

    A published archive that already lies in one of the folders is unpacked instead.

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
    folder = download_folder(facts, root)
    archive = _find_archive(facts, root)
    if not download and archive is None:
        raise _missing(facts, folder, ["data.download is false"])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if found := find_files(facts, root):
                return found
            _obtain(facts, folder, archive, mirrors or facts.mirrors, progress)
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
    if content[:2] == GZIP_MAGIC and facts.gz_sha256 is not None:
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
def _locked(folder: Path) -> Iterator[None]:
    with lock_of(folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find_archive(facts: DatasetFacts, root: str | None) -> Path | None:
    if facts.archive is None:
        return None
    paths = [folder / facts.archive.name for folder in _folders(facts, root)]
    return next((path for path in paths if path.is_file()), None)


def _obtain(
    facts: DatasetFacts,
    folder: Path,
    archive: Path | None,
    mirrors: tuple[str, ...],
    progress: Progress | None,
) -> None:
    """Work in a temporary folder; a file appears in `folder` whole and verified or never."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
        workspace = Path(temporary)

        def download(name: str, num_bytes: int, sha256: str | None) -> Path:
            wanted = _Wanted(name, num_bytes, sha256, workspace / name)
            failures = _download(wanted, mirrors, progress)
            if failures:
                raise _missing(facts, folder, failures)
            return wanted.target

        if facts.archive is not None:
            published = facts.archive
            archive = archive or download(published.name, published.num_bytes, published.sha256)
            fetched = extract(archive, published, workspace / "members")
        else:
            fetched = []
            for file in facts.files.values():
                fetched.append(download(f"{file.name}.gz", file.gz_bytes, file.gz_sha256))
                if file.sha256 is not None:
                    read_idx(fetched[-1], sha256=file.sha256)
        folder.mkdir(exist_ok=True)
        for path in fetched:
            os.replace(path, folder / path.name)


@dataclass(frozen=True, slots=True)
class _Wanted:
    name: str
    num_bytes: int
    sha256: str | None
    target: Path


def _download(wanted: _Wanted, mirrors: tuple[str, ...], progress: Progress | None) -> list[str]:
    """Fetch one file from the first mirror that has it; otherwise why each did not."""
    failures: list[str] = []
    for attempt in range(ROUNDS):
        for mirror in mirrors:
            url = f"{mirror.rstrip('/')}/{wanted.name}"
            try:
                found = _fetch(url, wanted, progress)
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{url}: {getattr(error, 'reason', error)}")
                continue
            if found == wanted.sha256:
                return []
            failures.append(f"{url}: SHA-256 {found}, expected {wanted.sha256}")
        if attempt + 1 < ROUNDS:
            time.sleep(0.5 * 2**attempt)
    return failures[-len(mirrors) :]


def _fetch(url: str, wanted: _Wanted, progress: Progress | None) -> str:
    """Download one address; returns the SHA-256 of what came."""
    digest = hashlib.sha256()
    received, started = 0, time.monotonic()
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response,
        wanted.target.open("wb") as out,
    ):
        while chunk := response.read1(1 << 16):  # what is there: `read` would wait for all
            out.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if progress is not None:
                progress(wanted.name.removesuffix(".gz"), received, wanted.num_bytes)
            seconds = time.monotonic() - started
            if seconds > TIMEOUT_SECONDS and received < SLOWEST * seconds:
                raise ValueError(f"less than {SLOWEST} bytes a second")
            if received > wanted.num_bytes:
                raise ValueError(f"more than the {wanted.num_bytes} bytes expected")
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _missing(facts: DatasetFacts, folder: Path, reasons: list[str]) -> InputError:
    if facts.archive is None:
        names = ", ".join(f"{file.name}.gz" for file in facts.files.values()) + " (or without .gz)"
    else:
        names = f"{facts.archive.name}, or its folder {facts.archive.folder},"
    return InputError(
        f"data set {facts.name!r} is not on this machine and could not be fetched "
        f"({'; '.join(reasons)})",
        expected=f"{names} in {folder}",
        remedy="On a machine with a network run `convoy prepare "
        f"{facts.name}`, or place the files there by hand, or point --data.root at them.",
    )
