"""Evaluation within a run: when it is due, on which weights, and what it means for the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from data.found import first_not_finite
from trainer.checkpoints.state import RunState
from trainer.components import Components
from trainer.due import Boundary, End, is_due
from trainer.engines.dtensor import load_full_state
from trainer.log import RunLog
from trainer.objective.evaluation import evaluate
from trainer.ranks.collectives import broadcast_
from trainer.ranks.failures import Diverged
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopPoll, StopRequest
from trainer.records.stopwatch import Stopwatch

logger = logging.getLogger("convoy")


class Evaluator:
    """Evaluates a run on a whole set that is held out, with the averaged weights if there are any.

    All that chooses looks at the validation set; the test set is then evaluated once, at the end,
    with the final weights and with the best ones. Without a validation set the choice is made on
    the test set.
    """

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
        best_weights: Callable[[], dict[str, Tensor] | None],
    ) -> None:
        self.components = components
        self.config = components.config
        self.runtime = runtime
        self.state = state
        self.log = log
        self.watch = watch
        self.stop = stop
        self.end = end
        self.best_weights = best_weights

    def evaluate_if_due(self, boundary: Boundary) -> bool:
        """False if an evaluation was due and a stop request came before its end."""
        due = boundary.epochs_due(self.config.evaluate.every_epochs) or self.end.reached
        return self.evaluate() if due else True

    def evaluate(self) -> bool:
        """Evaluate, record and note what was found; False if a stop request came first."""
        self.log.check_finite()
        self.watch.stop(0)  # the device has finished the last steps by now
        chosen = self.state.progress.test_due or self._choose()
        done = chosen and self._test_if_due()
        self.watch.start()  # evaluation does not count as training time
        return done

    def _choose(self) -> bool:
        """Evaluate the set that everything looks at which chooses."""
        state, progress, parts = self.state, self.state.progress, self.components
        progress.evaluation_due = True
        values = self._measure(parts.data.chosen_on)
        if values is None:
            return False
        ended = parts.plan.epoch_schedule.epochs_ended(progress.global_batches)
        progress.evaluated(
            values,
            parts.selection,
            min_gain=self.config.train.min_gain,
            regular=is_due(ended, self.config.evaluate.every_epochs),
        )
        state.schedule.evaluated(values, progress.global_batches)
        self.log.evaluation(values)
        return True

    def _test_if_due(self) -> bool:
        """At the end, evaluate the test set unless the choice was made on it."""
        progress = self.state.progress
        if self.components.data.chosen_on == "test" or not self.end.reached:
            return True
        progress.test_due = True
        final = self._measure("test")
        if final is None:
            return False
        best = final if progress.best_step == progress.step else self._measure_best()
        if best is None:
            return False
        progress.test_due, progress.test, progress.test_best = False, final, best
        self.log.test(final, best)
        return True

    def _measure_best(self) -> dict[str, float] | None:
        weights = self.best_weights()
        if weights is None:
            logger.warning("the best checkpoint is not there to be tested")
            return {}
        with holding(self._module, weights):
            return self._measure("test")

    def _measure(self, name: str) -> dict[str, float] | None:
        """Metrics over a set that is held out; None if a stop request came first."""
        parts = self.components
        broadcast_(self.runtime, list(self._module.buffers()))  # as DDP does before a forward pass
        result = evaluate(
            self._module,
            parts.loader,
            name,
            num_samples=len(parts.data.held_out[name]),
            batch_size=self.config.evaluate.batch_size,
            normalize=parts.normalize,
            call=parts.call,
            task=parts.task,
            precision=self.state.precision,
            runtime=self.runtime,
            interrupted=StopPoll(self.stop, self.runtime),
            run_along=self.state.engine.run_along,
        )
        if result and not math.isfinite(result.loss):
            self._refuse_data(name)
        return result.values if result else None

    def _refuse_data(self, name: str) -> None:
        """Say which sample makes a loss infinite, if it is one of the data's.

        Raises:
            Diverged: With the sample.
        """
        data = self.components.data.held_out[name]
        sample = first_not_finite(data, range(len(data)))
        if sample is not None:
            raise Diverged(
                f"{name} sample {sample} holds values that are not finite, so neither is any "
                "metric. Repair or drop it in the data set"
            )

    @property
    def _module(self) -> nn.Module:
        average = self.state.average
        return average.module if average else self.state.engine.module


@contextmanager
def holding(module: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """Give a module, sharded or not, other weights, and afterwards its own ones back."""
    own = {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in module.state_dict().items()
    }
    load_full_state(module, weights)
    try:
        yield
    finally:
        module.load_state_dict(own)
