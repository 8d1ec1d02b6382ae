"""A file that grows by whole pieces, and waits for a disk that is full."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

log = logging.getLogger("convoy")


class AppendFile:
    """Appends pieces, each as a whole or not at all.

    A disk that refuses them costs no run: that is said once, and every piece comes when it can.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        self.file = path.open("xb" if new else "r+b", buffering=0)
        self.end = self.file.seek(0, os.SEEK_END)
        """Bytes of the file that are whole pieces."""
        self.unwritten = b""
        """What was refused; tried again with the next piece."""
        self.refused = False

    def append(self, piece: bytes) -> None:
        self.unwritten += piece
        try:
            self.file.truncate(self.end)
            self.file.seek(self.end)
            written = self.file.write(self.unwritten)
            if written < len(self.unwritten):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if not self.refused:
                reason = error.strerror
                log.error("%s waits for the disk (%s); training goes on", self.path, reason)
            self.refused = True
            return
        self.end, self.unwritten, self.refused = self.end + written, b"", False

    def close(self) -> None:
        if self.unwritten:
            self.append(b"")
        self.file.close()
