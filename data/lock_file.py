"""Opening a lock file that others may have put something else in the place of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO


def open_lock(path: Path) -> TextIO:
    """A lock file, made if it is not there; never emptied, and a symbolic link is not followed.

    In a folder that several people may write to, a link could lead to anybody's file.

    Raises:
        OSError: If it is a link, or may not be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "r+")
