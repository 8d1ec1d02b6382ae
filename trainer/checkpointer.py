"""Checkpoints within a run: when one is due, and what it says of itself."""

from __future__ import annotations

from torch import Tensor

from trainer.checkpoints.checkpoint import (
    Position,
    load_checkpoint,
    step_of,
    wait_until_visible,
)
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.saver import Saver
from trainer.checkpoints.state import RunState, capture
from trainer.components import Components
from trainer.due import Boundary, End, steps_until
from trainer.log import RunLog
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.runtime import Runtime


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
        self.saver = Saver(directory.checkpoints, keep=config.keep, keep_best=config.keep_best)

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
        progress = self.state.progress
        self.log.check_finite()
        weights, trainer = capture(self.state, elapsed_seconds=self.log.elapsed_seconds)
        if not self.runtime.is_main:
            return
        self.directory.check_there()
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
        self.saver.submit(weights, trainer, position, is_best=is_best)

    def best_weights(self) -> dict[str, Tensor] | None:
        """What was evaluated at the best step, from its checkpoint; every rank calls it.

        None if that checkpoint is not there any more.
        """
        best, path = self.directory.checkpoints / "best", None
        if self.runtime.is_main:
            self.saver.finish()
            if best.exists() and step_of(best.resolve()) == self.state.progress.best_step:
                path = best.resolve()
        path = broadcast_object(self.runtime, path)
        if path is None:
            return None
        wait_until_visible(path)
        weights, trainer = raise_on_all_ranks(self.runtime, lambda: load_checkpoint(path))
        return (trainer["ema"] if self.state.average else None) or weights

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            SaveFailed: If the last checkpoint could not be written.
        """
        self.saver.wait()

    def close(self) -> None:
        self.saver.close()
