"""The whole of training, from top to bottom. The order of one optimizer step is in step.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema import RunConfig
from data.datasets import Normalize
from data.loading.loader import Loader
from data.loading.order import Plan, Window
from trainer.checkpoints.checkpoint import Position
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.saver import Saver
from trainer.checkpoints.state import Progress, Stateful, capture
from trainer.log import RunLog
from trainer.objective.evaluation import evaluate
from trainer.objective.meter import Stopwatch
from trainer.objective.task import Best, Task
from trainer.profiling.profiler import NoProfiler, Profiler
from trainer.ranks.collectives import barrier, broadcast_
from trainer.ranks.drift import check_drift
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import Poll, StopRequest
from trainer.records.gradient_statistics import GradientLog
from trainer.records.sinks import Sinks
from trainer.stretches import Stretches


@dataclass(slots=True, kw_only=True)
class Parts:
    """A run, assembled by build.py."""

    config: RunConfig
    runtime: Runtime
    plan: Plan
    loader: Loader
    num_test: int
    stretches: Stretches
    normalize: Normalize
    task: Task
    best: Best
    state: Stateful
    total_windows: int
    sinks: Sinks
    log: RunLog
    directory: RunDirectory
    saver: Saver
    stop: StopRequest
    gradients: GradientLog
    profiler: Profiler = field(default_factory=NoProfiler)
    watch: Stopwatch = field(default_factory=Stopwatch)

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
    config, progress = parts.config, parts.state.progress
    poll = Poll(parts.stop, parts.runtime)
    stopping = False
    if progress.evaluation_due:  # a stop request interrupted it
        stopping = not run_evaluation(parts)
        save(parts)
    parts.state.engine.module.train()
    parts.watch.mark()
    batches = parts.profiler.batches(parts.loader.stream(progress.window))

    while not (stopping or parts.finished):
        windows = upcoming(parts)  # mostly one global batch
        before = progress.step
        parts.gradients.prepare(before)
        with parts.profiler.step():
            parts.stretches(windows, batches)
        parts.watch.lap(sum(window.size for window in windows))
        parts.log.settle()  # the record before, now that the device has something to do

        stepped = progress.step > before  # fp16 may have skipped it
        last = windows[-1]
        ended = last.epoch + 1 if last.ends_epoch else None  # epochs, at the end of one
        stopping = poll()
        if stepped and due(progress.step, config.parallel.drift_every_steps):
            check_drift(parts.state.engine.module, parts.runtime, progress.step)
        if stepped and parts.gradients.watching:
            parts.log.gradient_sizes()
        if (stepped and due(progress.step, config.logging.every_steps)) or parts.finished:
            parts.log.training()
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


def upcoming(parts: Parts) -> list[Window]:
    """The next global batches, of one size, up to one after which something may be due."""
    config, progress, most = parts.config, parts.state.progress, parts.stretches.most
    if most == 1:
        return [parts.plan.window(progress.window)]
    limits = [most, parts.total_windows - progress.window]
    if config.train.max_steps is not None:
        limits.append(config.train.max_steps - progress.step)
    for every in (
        config.parallel.drift_every_steps,
        config.logging.every_steps,
        config.checkpoint.every_steps,
    ):
        if every is not None:
            limits.append(every - progress.step % every)
    if parts.gradients.every_steps is not None:  # such a step is watched, and so alone
        limits.append(parts.gradients.until_watched(progress.step))
    return parts.plan.windows(progress.window, min(limits))


def due(count: int | None, every: int | None) -> bool:
    return count is not None and every is not None and count % every == 0


def run_evaluation(parts: Parts) -> bool:
    """Evaluate on the whole test set; False if a stop request came first."""
    parts.log.check_finite()
    parts.watch.lap(0)  # the device has finished the last steps by now
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
    state.schedule.evaluated(result.values, progress.window)
    parts.log.evaluation(result.values)
    return True


def just_evaluated(progress: Progress) -> bool:
    return progress.evaluated_step == progress.step and not progress.evaluation_due


def save(parts: Parts) -> None:
    """Copy the state as it is now; it reaches the disk in the background."""
    progress, plan = parts.state.progress, parts.plan
    parts.log.check_finite()
    weights, trainer = capture(parts.state)
    trainer["progress"]["elapsed_seconds"] = parts.log.elapsed_seconds
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
