"""Which run directory, and which checkpoint in it, somebody means."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from configs.errors import InputError, closest_run
from trainer.checkpoints.atomic_files import follow

log = logging.getLogger("convoy")


def follow_run(given: Path) -> Path:
    """The directory that a run, or a checkpoint in one, is named by.

    Raises:
        InputError: If it is not there.
    """
    path = follow(given.expanduser())
    if not os.path.isdir(path):
        expected, remedy = "a run directory or a checkpoint in one", closest_run(str(given))
        raise InputError("run", given=str(given), expected=expected, remedy=remedy)
    return path


def find_checkpoint(given: Path, checkpoint: str | None) -> tuple[Path, Path]:
    """The run directory and the checkpoint that are meant; nothing is read yet.

    Raises:
        InputError: If one of them is not there.
    """
    from trainer.checkpoints.checkpoint import MANIFEST

    path = follow_run(given)
    is_checkpoint = (path / MANIFEST).is_file() or path.parent.name == "checkpoints"
    directory = path.parent.parent if is_checkpoint else path
    if not (directory / "config.yaml").is_file():
        raise InputError(
            "run",
            given=str(given),
            expected="a run directory (it holds config.yaml and checkpoints/) or a checkpoint in "
            "one",
        )
    if is_checkpoint and checkpoint is not None:
        raise InputError(
            "--checkpoint",
            given=checkpoint,
            expected="nothing, because the first argument names a checkpoint already",
        )
    return directory, path if is_checkpoint else _choose(directory, checkpoint)


def _choose(directory: Path, checkpoint: str | None) -> Path:
    folder = directory / "checkpoints"
    if not follow(folder / "latest").is_dir():
        raise InputError(
            f"{directory} has no checkpoint yet",
            expected="a run that has saved",
            remedy="Train it further: the first one is written after checkpoint.every_epochs or "
            "checkpoint.every_steps, and on a stop request.",
        )
    if checkpoint is None:
        checkpoint = "best" if follow(folder / "best").is_dir() else "latest"
        if checkpoint == "latest":
            log.info("no evaluation has chosen a best checkpoint yet: taking the latest")
    named = folder / checkpoint if checkpoint in ("best", "latest") else Path(checkpoint)
    found = follow(named.expanduser())
    if not found.is_dir():
        raise InputError(
            "--checkpoint",
            given=checkpoint,
            expected="best, latest or the path of a checkpoint directory",
            remedy=f"{folder} has {', '.join(sorted(path.name for path in folder.iterdir()))}.",
        )
    return found
