"""The whole of training, from top to bottom. The order of one optimizer step is in step.py."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.schema import RunConfig
from data.datasets import Normalize
from data.loader import Loader
from data.sampler import Plan
from trainer.checkpoint import Position
from trainer.collectives import barrier, broadcast_
from trainer.drift import check_drift
from trainer.evaluate import evaluate
from trainer.failures import Diverged
from trainer.gradients import GradientLog
from trainer.meter import Stopwatch
from trainer.preempt import Poll, StopRequest
from trainer.profiling.profiler import NoProfiler, Profiler
from trainer.run_directory import RunDirectory
from trainer.runtime import Runtime
from trainer.saver import Saver
from trainer.sinks import Record, Sinks
from trainer.state import Progress, Stateful, capture
from trainer.step import TrainStep
from trainer.task import Best, Task


@dataclass(slots=True, kw_only=True)
class Parts:
    """A run, assembled by build.py."""

    config: RunConfig
    runtime: Runtime
    plan: Plan
    loader: Loader
    num_test: int
    step: TrainStep
    normalize: Normalize
    task: Task
    best: Best
    state: Stateful
    total_windows: int
    sinks: Sinks
    directory: RunDirectory
    saver: Saver
    stop: StopRequest
    gradients: GradientLog
    profiler: Profiler = field(default_factory=NoProfiler)
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def elapsed_seconds(self) -> float:
        """Training time of the run over all its restarts."""
        return self.state.progress.elapsed_seconds + self.watch.total_seconds

    @property
    def finished(self) -> bool:
        progress, train = self.state.progress, self.config.train
        return (
            progress.window >= self.total_windows
            or (train.max_steps or 1 << 62) <= progress.step
            or (train.patience or 1 << 62) <= progress.evaluations_without_gain
        )


def fit(parts: Parts) -> str:
    """Train until the end or until asked to stop; returns "completed" or "preempted".

    Raises:
        RunFailed: If the loss is not finite, ranks have drifted apart, or the last checkpoint could
            not be written; nothing is saved from then on.
    """
    config, plan, progress = parts.config, parts.plan, parts.state.progress
    poll = Poll(parts.stop, parts.runtime)
    stopping = False
    if progress.evaluation_due:  # a stop request interrupted it
        stopping = not run_evaluation(parts)
        save(parts)
    parts.state.engine.module.train()
    parts.watch.mark()
    batches = parts.profiler.batches(parts.loader.stream(progress.window))

    while not (stopping or parts.finished):
        window = plan.window(progress.window)
        before = progress.step
        parts.gradients.prepare(before)
        with parts.profiler.step():
            parts.step(window, batches)
        parts.watch.lap(window.size)

        stepped = progress.step > before  # fp16 may have skipped it
        ended = window.epoch + 1 if window.ends_epoch else None  # epochs, at the end of one
        stopping = poll()
        if stepped and due(progress.step, config.parallel.drift_every_steps):
            check_drift(parts.state.engine.module, parts.runtime, progress.step)
        if stepped and parts.gradients.watching:
            log_gradients(parts)
        if (stepped and due(progress.step, config.logging.every_steps)) or parts.finished:
            log_training(parts)
        if due(ended, config.evaluate.every_epochs) or parts.finished:
            stopping = not run_evaluation(parts) or stopping
        if (
            (stepped and due(progress.step, config.checkpoint.every_steps))
            or due(ended, config.checkpoint.every_epochs)
            or (progress.best_step == progress.step and ended)
            or (config.checkpoint.keep_best > 1 and just_evaluated(progress))
            or parts.finished
            or stopping
        ):
            save(parts)

    parts.saver.wait()
    barrier(parts.runtime)  # a launcher ends the ranks left when one leaves: not before it is saved
    return "completed" if parts.finished and not progress.evaluation_due else "preempted"


def due(count: int | None, every: int | None) -> bool:
    return count is not None and every is not None and count % every == 0


def log_training(parts: Parts) -> None:
    """Average the metrics since the last record. Waits for the device."""
    check_finite(parts)
    totals = parts.state.meter.collect(parts.runtime)
    progress, scaler = parts.state.progress, parts.state.precision.scaler
    record = start_record(parts) | {
        "train/loss": totals.loss,
        f"train/{parts.task.score_name}": totals.score,
        "train/lr": parts.step.learning_rate,
        "train/grad_norm": float(parts.step.gradient_norm()),
        "train/samples_per_second": parts.watch.read(),
    }
    if scaler.is_enabled():
        record |= {
            "train/loss_scale": scaler.get_scale(),
            "train/skipped_steps": progress.skipped_steps,
        }
    parts.sinks.record(record)


def log_gradients(parts: Parts) -> None:
    """Record the gradient and the update of every parameter. Waits for the device."""
    check_finite(parts)
    parts.sinks.record(start_record(parts) | parts.gradients.measure())


def run_evaluation(parts: Parts) -> bool:
    """Evaluate on the whole test set; False if a stop request came first."""
    check_finite(parts)
    config, state, progress = parts.config, parts.state, parts.state.progress
    progress.evaluation_due = True
    module = state.ema.module if state.ema else state.engine.module
    broadcast_(parts.runtime, list(module.buffers()))  # as DDP does before each forward pass
    result = evaluate(
        module,
        parts.loader,
        num_samples=parts.num_test,
        batch_size=config.evaluate.batch_size,
        normalize=parts.normalize,
        task=parts.task,
        precision=state.precision,
        runtime=parts.runtime,
        interrupted=Poll(parts.stop, parts.runtime),
        run_along=state.engine.run_along,
    )
    parts.watch.mark()  # evaluation does not count as training time
    if result is None:
        return False
    ended = parts.plan.calendar.epochs_ended(progress.window)
    progress.evaluated(
        result.values,
        parts.best,
        min_gain=config.train.min_gain,
        regular=due(ended, config.evaluate.every_epochs),
    )
    parts.step.schedule.evaluated(result.values, progress.window)
    parts.sinks.record(start_record(parts) | under("eval", result.values))
    write_summary(parts, "running")
    return True


def just_evaluated(progress: Progress) -> bool:
    return progress.evaluated_step == progress.step and not progress.evaluation_due


def save(parts: Parts) -> None:
    """Copy the state as it is now; it reaches the disk in the background."""
    progress, plan = parts.state.progress, parts.plan
    check_finite(parts)
    weights, trainer = capture(parts.state)
    trainer["progress"]["elapsed_seconds"] = parts.elapsed_seconds
    if not parts.runtime.is_main:
        return
    position = Position(
        step=progress.step,
        epoch=plan.calendar.place(progress.window).epoch,
        position=plan.calendar.samples_before(progress.window),
        world_size=parts.runtime.world_size,
        best_step=progress.best_step,
        score=parts.best.score(progress.metrics) if just_evaluated(progress) else None,
        config_digest=parts.directory.digest,
        identity=parts.directory.identity,
    )
    is_best = bool(progress.best) and progress.best_step == progress.step
    parts.saver.submit(weights, trainer, position, is_best=is_best)


def check_finite(parts: Parts) -> None:
    """Stop before a loss that is not finite is recorded, or what it did to the weights is saved."""
    window = parts.state.meter.first_bad_window(parts.runtime)
    if window is not None:
        folder = parts.directory.checkpoints
        kept = (
            f"The checkpoints in {folder} are from before it"
            if any(folder.iterdir())
            else ("No checkpoint had been written yet")
        )
        raise Diverged(
            f"the loss of step {window + 1} is not finite. {kept}. Lower optimizer.lr, set "
            "train.clip_norm, or look at the data of that step"
        )


def start_record(parts: Parts) -> Record:
    progress = parts.state.progress
    return {
        "step": progress.step,
        "epoch": round(parts.plan.calendar.epochs(progress.window), 6),
        "time": round(time.time(), 3),
        "elapsed_seconds": round(parts.elapsed_seconds, 3),
    }


def under(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}/{name}": value for name, value in values.items()}


def write_summary(parts: Parts, status: str) -> None:
    if parts.runtime.is_main:
        progress = parts.state.progress
        unknown = dict.fromkeys((parts.best.metric, "loss"))  # before the first evaluation
        parts.directory.write_summary(
            {
                "status": status,
                "name": parts.config.name,
                "step": progress.step,
                "epoch": round(parts.plan.calendar.epochs(progress.window), 6),
                "skipped_steps": progress.skipped_steps,
                "elapsed_seconds": round(parts.elapsed_seconds, 3),
                "best/step": progress.best_step if progress.best else None,
            }
            | under("eval", progress.metrics or unknown)
            | under("best", progress.best or unknown)
        )
