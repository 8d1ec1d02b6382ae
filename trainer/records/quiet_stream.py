"""What is printed where nobody reads any more goes nowhere, and ends nothing."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Any


class QuietStream:
    """A text stream that falls silent when nobody reads it any more, or its disk is full.

    What a run prints is no reason to end it: its records are in its directory.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: Any) -> None:
        if self._gone:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            self._gone = True
            hush(self._stream)
            why = f"the output cannot be written any more ({error.strerror}); the run goes on"
            logging.getLogger("convoy").warning(why)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hush(stream: Any) -> None:
    """Let what is still buffered go nowhere: it would be tried again when the interpreter ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
