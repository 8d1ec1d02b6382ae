"""Checkpoints written in the background while training goes on."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.checkpoints.checkpoint import Position
from trainer.checkpoints.checkpoint_folder import save_checkpoint
from trainer.ranks.failures import SaveFailed

log = logging.getLogger("convoy")


class Saver:
    """Writes copies of the state in a thread of its own, one at a time.

    An interpreter that exits waits for a write under way; a killed one leaves a temporary
    directory that nothing mistakes for a checkpoint.
    """

    def __init__(self, folder: Path, *, keep: int, keep_best: int = 1) -> None:
        self.folder = folder
        self.keep = keep
        self.keep_best = keep_best
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.pending: Future[Path] | None = None
        self.step = 0

    def submit(
        self,
        weights: dict[str, Tensor],
        trainer: dict[str, Any],
        position: Position,
        *,
        is_best: bool,
    ) -> None:
        """Begin to write a checkpoint; see `save_checkpoint` for the arguments.

        Waits for the write before this one. If that one failed, the error is logged, and training
        goes on.
        """
        self.finish()
        self.step = position.step
        self.pending = self.thread.submit(
            save_checkpoint,
            self.folder,
            weights,
            trainer,
            position,
            keep=self.keep,
            keep_best=self.keep_best,
            is_best=is_best,
        )

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
            reason = " ".join(str(error).split()) or type(error).__name__
            raise SaveFailed(
                f"the checkpoint of step {self.step} was not saved ({reason}); those before it in "
                f"{self.folder} are intact"
            ) from error

    def close(self) -> None:
        """End the thread, after a write that is under way."""
        self.thread.shutdown()
