"""Only a test marked `process` starts processes: the others are quick, and `make test-unit` is."""

from __future__ import annotations

import multiprocessing.process
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HARMLESS = {"git", "uname"}
"""Programs that a run asks about itself, and which answer at once."""

STARTS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "subprocess.Popen",
}
"""Audit events of Python that announce a process."""


class Guard:
    """Fails the test during which a process is started, unless it may."""

    def __init__(self) -> None:
        self.forbids = False

    def install(self) -> None:
        """Watch this process from now on; an audit hook cannot be taken back."""
        sys.addaudithook(self.audit)
        start = multiprocessing.process.BaseProcess.start

        def watched(process: multiprocessing.process.BaseProcess) -> None:
            self.check(str(process))  # spawned without an audit event
            start(process)

        multiprocessing.process.BaseProcess.start = watched  # type: ignore[method-assign]

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS and not (event == "subprocess.Popen" and harmless(arguments[1])):
            self.check(f"{event} {arguments}")

    def check(self, what: str) -> None:
        if self.forbids:
            pytest.fail(f"a test that is not marked `process` starts one: {what}")

    @contextmanager
    def watching(self, item: pytest.Item) -> Iterator[None]:
        """For the time of a test, the fixtures that are set up for it first included.

        On a GPU torch and triton ask programs of the system and compile, in any test.
        """
        self.forbids = not any(map(item.get_closest_marker, ("process", "gpu")))
        try:
            yield
        finally:
            self.forbids = False


def harmless(command: Any) -> bool:
    program = command if isinstance(command, str | Path) else command[0]
    return Path(str(program)).name in HARMLESS
