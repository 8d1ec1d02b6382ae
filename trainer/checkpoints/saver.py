"""Checkpoints written in the background while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from configs.errors import one_line
from trainer.ranks.failures import SaveFailed

log = logging.getLogger("convoy")


class Saver:
    """Does what writes a copy of the state in a thread of its own, one at a time.

    An interpreter that exits waits for a write under way; a killed one leaves a temporary
    directory that nothing mistakes for a checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[Path] | None = None
        self.step = 0

    def submit(self, step: int, write: Callable[[], Path]) -> None:
        """Begin to write the checkpoint of a step.

        Waits for the write before this one. If that one failed, the error is logged, and training
        goes on.
        """
        self.finish()
        self.step = step
        self.pending = self.thread.submit(write)

    def finish(self) -> None:
        """Wait until nothing is being written; if the last write failed, that is logged."""
        try:
            self.wait()
        except SaveFailed as error:
            log.error("%s; training goes on", error)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            SaveFailed: If the last write failed.
        """
        if self.pending is None:
            return
        error = self.pending.exception()
        self.pending = None
        if error is not None:
            reason = one_line(error)
            raise SaveFailed(
                f"the checkpoint of step {self.step} was not saved ({reason}); those before it in "
                f"{self.folder} are intact"
            ) from error

    def close(self) -> None:
        """End the thread, after a write that is under way."""
        self.thread.shutdown()
