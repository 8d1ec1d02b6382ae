"""Evaluation within a run: when it is due, on which weights, and what it means for the run."""

from __future__ import annotations

from trainer.checkpoints.state import RunState
from trainer.components import Components
from trainer.due import Boundary, End, is_due
from trainer.log import RunLog
from trainer.objective.evaluation import evaluate
from trainer.ranks.collectives import broadcast_
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopPoll, StopRequest
from trainer.records.stopwatch import Stopwatch


class Evaluator:
    """Evaluates a run on the whole test set, with the averaged weights if there are any."""

    def __init__(
        self,
        components: Components,
        *,
        runtime: Runtime,
        state: RunState,
        log: RunLog,
        watch: Stopwatch,
        stop: StopRequest,
        end: End,
    ) -> None:
        self.components = components
        self.config = components.config
        self.runtime = runtime
        self.state = state
        self.log = log
        self.watch = watch
        self.stop = stop
        self.end = end

    def evaluate_if_due(self, boundary: Boundary) -> bool:
        """False if an evaluation was due and a stop request came before its end."""
        due = boundary.epochs_due(self.config.evaluate.every_epochs) or self.end.reached
        return self.evaluate() if due else True

    def evaluate(self) -> bool:
        """Evaluate, record and note what was found; False if a stop request came first."""
        self.log.check_finite()
        self.watch.stop(0)  # the device has finished the last steps by now
        config, state, progress = self.config, self.state, self.state.progress
        parts = self.components
        progress.evaluation_due = True
        module = state.average.module if state.average else state.engine.module
        broadcast_(self.runtime, list(module.buffers()))  # as DDP does before each forward pass
        result = evaluate(
            module,
            parts.loader,
            num_samples=len(parts.data.test),
            batch_size=config.evaluate.batch_size,
            normalize=parts.normalize,
            task=parts.task,
            precision=state.precision,
            runtime=self.runtime,
            interrupted=StopPoll(self.stop, self.runtime),
            run_along=state.engine.run_along,
        )
        self.watch.start()  # evaluation does not count as training time
        if result is None:
            return False
        ended = parts.plan.epoch_schedule.epochs_ended(progress.global_batches)
        progress.evaluated(
            result.values,
            parts.selection,
            min_gain=config.train.min_gain,
            regular=is_due(ended, config.evaluate.every_epochs),
        )
        state.schedule.evaluated(result.values, progress.global_batches)
        self.log.evaluation(result.values)
        return True
