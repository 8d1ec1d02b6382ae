"""Files, directories and links that are replaced as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from configs.errors import InputError


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at the end, if `durable` flushed to disk.

    A reader sees the old content or the new; after an error the old one, and nothing is left over.
    Waiting for the disk takes milliseconds, in which a small network is trained for an epoch.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace the content of a file; see `replacing`. Text is written as UTF-8."""
    with replacing(path, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def replace_directory(temporary: Path, final: Path) -> None:
    """Rename a directory to `final`; an older directory of that name is deleted afterwards."""
    old = final.with_name(f".old-{final.name}")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def replace_link(link: Path, target: Path) -> None:
    """Make `link` a relative symbolic link to its sibling `target`, in one step."""
    temporary = link.with_name(f".{link.name}-new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a directory: a rename that reaches the disk before its data loses both."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(option: str, path: Path) -> None:
    """Refuse a file that could not be written, before any work goes into it.

    Args:
        option: The option that names it, for the message.
        path: The file.

    Raises:
        InputError: If its folder is not there or not writable, or it is a folder itself.
    """
    if path.is_dir():
        raise InputError(option, given=str(path), expected="a file, not a folder")
    if not path.parent.is_dir():
        raise InputError(option, given=str(path), expected="a file in a folder that exists")
    if not os.access(path.parent, os.W_OK):
        raise InputError(option, given=str(path), expected="a folder this user may write to")
