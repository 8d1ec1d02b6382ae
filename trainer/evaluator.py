"""Evaluation within a run: when it is due, on which weights, and what it means for the run."""

from __future__ import annotations

from configs.schema import RunConfig
from data.loading.loader import Loader
from data.loading.order import Plan
from data.normalize import Normalize
from trainer.checkpoints.state import RunState
from trainer.due import Boundary, End, is_due
from trainer.log import RunLog
from trainer.objective.evaluation import evaluate
from trainer.objective.selection import Selection
from trainer.objective.task import Task
from trainer.ranks.collectives import broadcast_
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopPoll, StopRequest
from trainer.records.stopwatch import Stopwatch


class Evaluator:
    """Evaluates a run on the whole test set, with the averaged weights if there are any."""

    def __init__(
        self,
        *,
        config: RunConfig,
        runtime: Runtime,
        state: RunState,
        plan: Plan,
        loader: Loader,
        num_samples: int,
        normalize: Normalize,
        task: Task,
        selection: Selection,
        log: RunLog,
        watch: Stopwatch,
        stop: StopRequest,
        end: End,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.state = state
        self.plan = plan
        self.loader = loader
        self.num_samples = num_samples
        self.normalize = normalize
        self.task = task
        self.selection = selection
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
        progress.evaluation_due = True
        module = state.average.module if state.average else state.engine.module
        broadcast_(self.runtime, list(module.buffers()))  # as DDP does before each forward pass
        result = evaluate(
            module,
            self.loader,
            num_samples=self.num_samples,
            batch_size=config.evaluate.batch_size,
            normalize=self.normalize,
            task=self.task,
            precision=state.precision,
            runtime=self.runtime,
            interrupted=StopPoll(self.stop, self.runtime),
            run_along=state.engine.run_along,
        )
        self.watch.start()  # evaluation does not count as training time
        if result is None:
            return False
        ended = self.plan.epoch_schedule.epochs_ended(progress.global_batches)
        progress.evaluated(
            result.values,
            self.selection,
            min_gain=config.train.min_gain,
            regular=is_due(ended, config.evaluate.every_epochs),
        )
        state.schedule.evaluated(result.values, progress.global_batches)
        self.log.evaluation(result.values)
        return True
