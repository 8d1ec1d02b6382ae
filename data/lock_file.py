"""Opening a lock file that others may have put something else in the place of."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TextIO


def lock_of(folder: Path) -> TextIO:
    """The lock of a folder, whether it is there yet or not: one file, whatever links lead to it.

    It lies beside the folder, which may be renamed while the lock is held; in it if nothing may be
    written beside it.

    Raises:
        OSError: See `open_lock`; and if links lead in a circle.
    """
    real = Path(os.path.realpath(folder))
    if real.is_dir() and not os.access(real.parent, os.W_OK):
        return open_lock(real / ".lock")
    return open_lock(real.parent / f".{real.name}.lock")


def open_lock(path: Path) -> TextIO:
    """A lock file, made if it is not there; never emptied, and a symbolic link is not followed.

    In a folder that several people may write to, a link could lead to anybody's file.

    Raises:
        OSError: If it is a link or a device, or may not be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o664)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(error.errno, f"the lock {path} is a symbolic link: remove it") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"the lock {path} is no plain file: remove it")
    return os.fdopen(descriptor, "r+")
