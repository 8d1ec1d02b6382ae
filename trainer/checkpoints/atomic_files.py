"""Files that are published whole or not at all."""

from __future__ import annotations

import os
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
