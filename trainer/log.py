"""What a run says of itself: records, the summary, and that its loss is no longer finite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from configs.schema import RunConfig
from data.loading.epoch_schedule import EpochSchedule
from trainer.backward.compile_watch import CompileWatch
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.state import RunState
from trainer.due import Boundary, End, steps_until
from trainer.hook import After, Hook
from trainer.objective.meter import HostCopies, UnreadMetrics
from trainer.objective.selection import Selection
from trainer.objective.task import Task
from trainer.ranks.failures import Diverged
from trainer.ranks.precision import loss_scale
from trainer.ranks.runtime import Runtime
from trainer.records.gradient_statistics import GradientLog
from trainer.records.pace import NUMBERS, Pace, RowOfSteps, Take
from trainer.records.sinks import Record, Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.step import TrainStep

logger = logging.getLogger("convoy")
REMEDY = (
    "Lower optimizer.lr, set train.clip_norm, or look at the data of that step: a mean over "
    "targets that are all ignored is no number either, where (sum, weight) are (0, 0)"
)


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A record whose numbers are on their way from the device."""

    record: Record
    metrics: UnreadMetrics
    norm: HostCopies
    scale: HostCopies | None
    row: RowOfSteps | None


class RunLog:
    """The records of a run, on every rank; rank 0 has the sinks.

    On a GPU a training record is written when the device has its next steps to take, or before
    anything else is written: neither waits for the other.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        runtime: Runtime,
        state: RunState,
        finite: FiniteCheck,
        step: TrainStep,
        epoch_schedule: EpochSchedule,
        task: Task,
        selection: Selection,
        chosen_on: str,
        sinks: Sinks,
        directory: RunDirectory,
        bad_sample: Callable[[int], int | None],
        gradients: GradientLog,
        watch: Stopwatch,
        pace: Pace,
        end: End,
        hook: Hook,
        tokens_per_sample: int | None = None,
        compiled: CompileWatch | None = None,
    ) -> None:
        self.config = config
        self.runtime = runtime
        self.state = state
        self.finite = finite
        self.step = step
        self.epoch_schedule = epoch_schedule
        self.score_name = f"train/{task.score_name}" if task.score_name else ""
        self.selection = selection
        self.chosen_on = chosen_on
        self.group = "val" if chosen_on == "validation" else "eval"
        self.sinks = sinks
        self.directory = directory
        self.bad_sample = bad_sample
        """The first sample of a global batch whose inputs are not finite."""
        self.gradients = gradients
        self.watch = watch
        self.pace = pace
        self.end = end
        self.hook = hook
        self.written: Record = {}
        """The latest training record."""
        self.tokens_per_sample = tokens_per_sample
        self.compiled = compiled
        """What the compiler does, in a run that has one."""
        self.unwritten: Unwritten | None = None
        self.summary_refused = self.compiled_said = False

    @property
    def elapsed_seconds(self) -> float:
        """Training time of the run over all its restarts."""
        return self.state.progress.elapsed_seconds + self.watch.total_seconds

    def before_steps(self, take: Take, count: int) -> Take:
        """Keep the weights if the step that comes is one to be measured.

        Returns:
            What takes the next `count` steps: `take` itself, or looked at if a record follows.
        """
        self.gradients.prepare(self.state.progress.step)
        until = steps_until(self.state.progress.step, self.config.logging.every_steps)
        return take if count < min(until, self.end.steps_left) else self.pace.timed(take)

    def steps_until_due(self) -> int:
        """Steps to the next record; a step that is to be measured is taken by itself."""
        step = self.state.progress.step
        left = steps_until(step, self.config.logging.every_steps)
        return min(left, self.gradients.until_watched(step))

    def record_if_due(self, boundary: Boundary) -> None:
        """Record sizes of gradients, and the metrics since the last record, if that is due."""
        if boundary.stepped and self.gradients.watching:
            self.gradient_sizes()
        if boundary.steps_due(self.config.logging.every_steps) or self.end.reached:
            self.training()

    def training(self) -> None:
        """Average the metrics since the last record."""
        self.flush()
        self.step.parts.check(self.state.progress.step)
        scaler = self.state.precision.scaler
        rate = self.watch.read()
        record = self._start() | {
            "train/lr": self.step.learning_rate,
            "train/samples_per_second": rate,
        }
        if self.tokens_per_sample is not None:
            record["train/tokens_per_second"] = rate * self.tokens_per_sample
        record |= self._compiled()
        scale = None
        if scaler.is_enabled():
            record["train/skipped_steps"] = self.state.progress.skipped_steps
            scale = HostCopies([loss_scale(scaler)])
        norm = HostCopies([self.step.gradient_norm()])
        row = self.pace.unread()
        self.unwritten = Unwritten(record, self.state.meter.unread(), norm, scale, row)
        if self.runtime.device.type == "cpu" or self.hook.wanted:
            self.flush()
            self._show("training", self.written)

    def flush(self) -> None:
        """Write the training record that is still unwritten, when its numbers have come.

        Raises:
            Diverged: If a loss in it is not finite; it is not written then.
        """
        if self.unwritten is None:
            return
        pending, self.unwritten = self.unwritten, None
        self._refuse(pending.metrics.first_bad_global_batch(self.runtime))
        device = self.runtime.device
        mine = [math.nan] * NUMBERS if pending.row is None else pending.row.numbers(device)
        totals, ranks = pending.metrics.totals(self.runtime, mine)
        more = {"train/grad_norm": float(pending.norm.wait()[0])}
        if totals.count:  # else fp16 skipped every step since the last record
            score = {self.score_name: totals.score} if self.score_name else {}
            more = {"train/loss": totals.loss, **score, **more}
        if pending.scale is not None:
            more["train/loss_scale"] = float(pending.scale.wait()[0])
        self.written = pending.record | more
        if pending.row is not None:
            self.written |= self.pace.describe(ranks, pending.record["train/samples_per_second"])
        self.sinks.record(self.written)

    def _compiled(self) -> Record:
        """What has been compiled, in the first record after it, and once in the log."""
        if self.compiled is None or not (news := self.compiled.news()):
            return {}
        if not self.compiled_said and self.runtime.is_main:
            logger.info(self.compiled.line())
        self.compiled_said = True
        return news

    def gradient_sizes(self) -> None:
        """Record the gradient and the update of every parameter. Waits for the device."""
        self.check_finite()
        self.sinks.record(self._start() | self.gradients.measure())

    def evaluation(self, values: Mapping[str, float]) -> None:
        record = self._start() | under(self.group, values)
        self.sinks.record(record)
        self.summary("running")
        self._show("evaluation", record)

    def test(self, final: Mapping[str, float], best: Mapping[str, float]) -> None:
        """Record what the final weights and the chosen ones reach on the test set."""
        record = self._start() | under("test", final) | under("test_best", best)
        self.sinks.record(record)
        self.summary("running")
        self._show("evaluation", record)

    def _show(self, after: After, record: Record) -> None:
        self.hook(after, record)
        self.step.parts.check(self.state.progress.step)

    def check_finite(self) -> None:
        """Stop before a number that is not finite is recorded, saved or evaluated.

        Raises:
            Diverged: With the step whose loss it is, or the name of what holds it.
        """
        self.flush()
        self.step.parts.check(self.state.progress.step)
        self._refuse(self.state.meter.first_bad_global_batch(self.runtime))
        culprit = self.finite.culprit()
        if culprit is not None:
            raise Diverged(
                f"after step {self.state.progress.step} {culprit} is not finite, while all losses "
                f"were. {self._kept()}. {REMEDY}"
            )

    def summary(self, status: str) -> None:
        """Replace summary.json."""
        if not self.runtime.is_main:
            return
        progress = self.state.progress
        unknown = dict.fromkeys((self.selection.metric, "loss"))  # before the first evaluation
        content = (
            {
                "status": status,
                "name": self.config.name,
                "step": progress.step,
                "epoch": round(self.epoch_schedule.epochs(progress.global_batches), 6),
                "skipped_steps": progress.skipped_steps,
                "elapsed_seconds": round(self.elapsed_seconds, 3),
                "selected_on": self.chosen_on,
                "selected_by": self.selection.metric,
                "higher_is_better": dict(self.selection.directions),
                "best/step": progress.best_step if progress.best else None,
            }
            | under(self.group, progress.metrics or unknown)
            | under("best", progress.best or unknown)
            | under("test", progress.test)
            | under("test_best", progress.test_best)
            | (self.compiled.values() if self.compiled else {})
        )
        try:
            self.directory.write_summary(content)
        except OSError as error:
            where, last = f"{self.directory.path}/summary.json", status != "running"
            if last or not self.summary_refused:
                more = "" if last else "; training goes on"
                logger.error(f"{where} cannot be written ({error.strerror}){more}")
            self.summary_refused = True

    def _start(self) -> Record:
        if self.runtime.is_main:
            self.directory.check_there()
        progress = self.state.progress
        return {
            "step": progress.step,
            "epoch": round(self.epoch_schedule.epochs(progress.global_batches), 6),
            "time": round(time.time(), 3),
            "elapsed_seconds": round(self.elapsed_seconds, 6),
        }

    def _refuse(self, global_batch: int | None) -> None:
        if global_batch is None:
            return
        where = f"the loss of step {global_batch + 1} is not finite"
        sample = self.bad_sample(global_batch)
        if sample is not None:
            raise Diverged(
                f"{where}, because training sample {sample} holds values that are not. "
                f"{self._kept()}. Repair or drop it in the data set"
            )
        if (culprit := self.finite.culprit()) is not None:
            where += f", and after step {self.state.progress.step} neither is {culprit}"
        raise Diverged(f"{where}. {self._kept()}. {REMEDY}")

    def _kept(self) -> str:
        folder = self.directory.checkpoints
        if any(folder.iterdir()):
            return f"The checkpoints in {folder} are from before it"
        return "No checkpoint had been written yet"


def under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": value for name, value in values.items()}
