"""Checkpoints within a run: when one is due, and what it says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoints.atomic_files import follow
from trainer.checkpoints.checkpoint import (
    Position,
    folder_name,
    load_checkpoint,
    step_of,
    unfinished,
    wait_until_visible,
)
from trainer.checkpoints.checkpoint_folder import save_checkpoint, save_parts
from trainer.checkpoints.checkpoint_parts import prepare_folder
from trainer.checkpoints.object_store import Uploader, find_store
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.saver import Saver
from trainer.checkpoints.state import RunState, capture, capture_part
from trainer.components import Components
from trainer.due import Boundary, End, steps_until
from trainer.engines.engine import Engine
from trainer.log import RunLog
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.runtime import Runtime

GATHERED_BYTES = 1 << 31
"""Of weights, up to which `checkpoint.sharded: auto` gathers them on one rank."""


class Checkpointer:
    """Copies the state of a run when that is due; it reaches the disk in the background."""

    def __init__(
        self,
        components: Components,
        *,
        runtime: Runtime,
        state: RunState,
        log: RunLog,
        directory: RunDirectory,
        end: End,
    ) -> None:
        self.config = config = components.config.checkpoint
        self.runtime = runtime
        self.state = state
        self.epoch_schedule = components.plan.epoch_schedule
        self.selection = components.selection
        self.log = log
        self.directory = directory
        self.end = end
        self.saver = Saver(directory.checkpoints)
        self.uploader: Uploader | None = None
        if runtime.is_main and (store := find_store(components.config)) is not None:
            self.uploader = Uploader(store, config.keep)
        self.in_parts = writes_parts(config.sharded, state.engine)
        self.patience_seconds = components.config.parallel.init_timeout_seconds

    def steps_until_due(self) -> int:
        return steps_until(self.state.progress.step, self.config.every_steps)

    def save_if_due(self, boundary: Boundary, *, stopping: bool) -> None:
        """Save every so many steps or epochs, what an evaluation found best, and at the end."""
        config, progress = self.config, self.state.progress
        found_best = progress.best_step == progress.step and boundary.ended is not None
        one_of_the_best = config.keep_best > 1 and progress.just_evaluated
        due = boundary.steps_due(config.every_steps) or boundary.epochs_due(config.every_epochs)
        if due or found_best or one_of_the_best or stopping or self.end.reached:
            self.save()

    def save(self) -> None:
        """Copy the state as it is now; every rank calls it.

        Raises:
            Diverged: If the loss is not finite.
        """
        step, elapsed = self.state.progress.step, self.log.elapsed_seconds
        self.log.check_finite()
        if self.in_parts:
            self._make_room(step)
            part, rest = capture_part(self.state, elapsed_seconds=elapsed)
            seconds = self.patience_seconds
            self._submit(step, partial(save_parts, seconds=seconds), part, rest)
            return
        weights, trainer = capture(self.state, elapsed_seconds=elapsed)
        if self.runtime.is_main:
            self.directory.check_there()
            self._submit(step, save_checkpoint, weights, trainer)

    def _make_room(self, step: int) -> None:
        """A folder for the parts of all ranks, which meet when these are captured."""
        self.saver.finish()
        if not self.runtime.is_main:
            return
        self.directory.check_there()
        folder = self.directory.checkpoints
        with contextlib.suppress(OSError):  # then no part can be written, which is reported
            folder.mkdir(exist_ok=True)
            prepare_folder(unfinished(folder / folder_name(step)))

    def _submit(
        self, step: int, save: Callable[..., Path], weights: Any, rest: dict[str, Any]
    ) -> None:
        """Let a copy of the state be written in the background."""
        progress, config = self.state.progress, self.config
        score = self.selection.score(progress.metrics) if progress.just_evaluated else None
        position = Position(
            step=progress.step,
            epoch=self.epoch_schedule.locate(progress.global_batches).epoch,
            position=self.epoch_schedule.samples_before(progress.global_batches),
            world_size=self.runtime.world_size,
            best_step=progress.best_step,
            score=score,
            config_digest=self.directory.digest,
            identity=self.directory.identity,
        )
        is_best = bool(progress.best) and progress.best_step == progress.step
        write = partial(
            save,
            self.directory.checkpoints,
            weights,
            rest,
            position,
            keep=config.keep,
            keep_best=config.keep_best,
            is_best=is_best,
        )
        uploader = self.uploader
        self.saver.submit(step, (lambda: uploader.submit(write())) if uploader else write)

    def best_weights(self) -> dict[str, Any] | None:
        """What was evaluated at the best step, from its checkpoint; every rank calls it.

        None if that checkpoint is not there any more.
        """
        path = None
        if self.runtime.is_main:
            self.saver.finish()
            best = follow(self.directory.checkpoints / "best")
            if best.is_dir() and step_of(best) == self.state.progress.best_step:
                path = best
        path = broadcast_object(self.runtime, path)
        if path is None:
            return None
        wait_until_visible(path)
        by_rows = self.state.engine.sharded
        weights, trainer = raise_on_all_ranks(
            self.runtime, lambda: load_checkpoint(path, by_rows=by_rows)
        )
        return (trainer["ema"] if self.state.average else None) or weights

    def wait(self) -> None:
        """Return when everything is on disk, and for a while when it is not in storage yet.

        Raises:
            SaveFailed: If the last checkpoint could not be written.
        """
        self.saver.wait()
        if self.uploader is not None:
            self.uploader.wait()

    def close(self) -> None:
        self.saver.close()
        if self.uploader is not None:
            self.uploader.close()


def writes_parts(asked: bool | Literal["auto"], engine: Engine) -> bool:
    """Whether ranks write a part of a checkpoint each, instead of gathering it on one of them."""
    if asked != "auto":
        return asked
    size = sum(parameter.numel() * parameter.itemsize for parameter in engine.module.parameters())
    return engine.sharded and size >= GATHERED_BYTES
