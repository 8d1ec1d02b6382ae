"""The whole of training, from top to bottom. The order of one optimizer step is in step.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema import RunConfig
from data.datasets import Normalize
from data.loading.loader import Loader
from data.loading.order import GlobalBatch, Plan
from trainer.checkpoints.checkpoint import Position
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.saver import Saver
from trainer.checkpoints.state import Progress, RunState, capture
from trainer.log import RunLog
from trainer.objective.evaluation import evaluate
from trainer.objective.selection import Selection
from trainer.objective.task import Task
from trainer.profiling.profiler import NoProfiler, Profiler
from trainer.ranks.collectives import barrier, broadcast_
from trainer.ranks.drift import check_drift
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopPoll, StopRequest
from trainer.records.gradient_statistics import GradientLog
from trainer.records.sinks import Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.stretches import Stretches


@dataclass(slots=True, kw_only=True)
class Run:
    """A run, assembled by build.py."""

    config: RunConfig
    runtime: Runtime
    plan: Plan
    loader: Loader
    num_test: int
    stretches: Stretches
    normalize: Normalize
    task: Task
    selection: Selection
    state: RunState
    total_global_batches: int
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
            progress.global_batches >= self.total_global_batches
            or (train.max_steps or 1 << 62) <= progress.step
            or (train.patience or 1 << 62) <= progress.evaluations_without_gain
        )


def fit(run: Run) -> str:
    """Train until the end or until asked to stop; returns "completed" or "preempted".

    Raises:
        RunFailed: If the loss is not finite, ranks have drifted apart, or the last checkpoint could
            not be written; nothing is saved from then on.
    """
    config, progress = run.config, run.state.progress
    poll = StopPoll(run.stop, run.runtime)
    stopping = False
    if progress.evaluation_due:  # a stop request interrupted it
        stopping = not run_evaluation(run)
        save(run)
    run.state.engine.module.train()
    run.watch.start()
    batches = run.profiler.batches(run.loader.stream(progress.global_batches))

    while not (stopping or run.finished):
        global_batches = upcoming(run)  # mostly one global batch
        before = progress.step
        run.gradients.prepare(before)
        with run.profiler.step():
            run.stretches(global_batches, batches)
        run.watch.stop(sum(global_batch.size for global_batch in global_batches))
        run.log.flush()  # the record before, now that the device has something to do

        stepped = progress.step > before  # fp16 may have skipped it
        last = global_batches[-1]
        ended = last.epoch + 1 if last.ends_epoch else None  # epochs, at the end of one
        stopping = poll()
        if stepped and due(progress.step, config.parallel.drift_every_steps):
            check_drift(run.state.engine.module, run.runtime, progress.step)
        if stepped and run.gradients.watching:
            run.log.gradient_sizes()
        if (stepped and due(progress.step, config.logging.every_steps)) or run.finished:
            run.log.training()
        if due(ended, config.evaluate.every_epochs) or run.finished:
            stopping = not run_evaluation(run) or stopping
        if (
            (stepped and due(progress.step, config.checkpoint.every_steps))
            or due(ended, config.checkpoint.every_epochs)
            or (progress.best_step == progress.step and ended)
            or (config.checkpoint.keep_best > 1 and just_evaluated(progress))
            or run.finished
            or stopping
        ):
            save(run)

    run.saver.wait()
    barrier(run.runtime)  # a launcher ends the ranks left when one leaves: not before it is saved
    return "completed" if run.finished and not progress.evaluation_due else "preempted"


def upcoming(run: Run) -> list[GlobalBatch]:
    """The next global batches, of one size, up to one after which something may be due."""
    config, progress, most = run.config, run.state.progress, run.stretches.most
    if most == 1:
        return [run.plan.global_batch(progress.global_batches)]
    limits = [most, run.total_global_batches - progress.global_batches]
    if config.train.max_steps is not None:
        limits.append(config.train.max_steps - progress.step)
    for every in (
        config.parallel.drift_every_steps,
        config.logging.every_steps,
        config.checkpoint.every_steps,
    ):
        if every is not None:
            limits.append(every - progress.step % every)
    if run.gradients.every_steps is not None:  # such a step is watched, and so alone
        limits.append(run.gradients.until_watched(progress.step))
    return run.plan.global_batches(progress.global_batches, min(limits))


def due(count: int | None, every: int | None) -> bool:
    return count is not None and every is not None and count % every == 0


def run_evaluation(run: Run) -> bool:
    """Evaluate on the whole test set; False if a stop request came first."""
    run.log.check_finite()
    run.watch.stop(0)  # the device has finished the last steps by now
    config, state, progress = run.config, run.state, run.state.progress
    progress.evaluation_due = True
    module = state.ema.module if state.ema else state.engine.module
    broadcast_(run.runtime, list(module.buffers()))  # as DDP does before each forward pass
    result = evaluate(
        module,
        run.loader,
        num_samples=run.num_test,
        batch_size=config.evaluate.batch_size,
        normalize=run.normalize,
        task=run.task,
        precision=state.precision,
        runtime=run.runtime,
        interrupted=StopPoll(run.stop, run.runtime),
        run_along=state.engine.run_along,
    )
    run.watch.start()  # evaluation does not count as training time
    if result is None:
        return False
    ended = run.plan.epoch_schedule.epochs_ended(progress.global_batches)
    progress.evaluated(
        result.values,
        run.selection,
        min_gain=config.train.min_gain,
        regular=due(ended, config.evaluate.every_epochs),
    )
    state.schedule.evaluated(result.values, progress.global_batches)
    run.log.evaluation(result.values)
    return True


def just_evaluated(progress: Progress) -> bool:
    return progress.evaluated_step == progress.step and not progress.evaluation_due


def save(run: Run) -> None:
    """Copy the state as it is now; it reaches the disk in the background."""
    progress, plan = run.state.progress, run.plan
    run.log.check_finite()
    weights, trainer = capture(run.state)
    trainer["progress"]["elapsed_seconds"] = run.log.elapsed_seconds
    if not run.runtime.is_main:
        return
    position = Position(
        step=progress.step,
        epoch=plan.epoch_schedule.locate(progress.global_batches).epoch,
        position=plan.epoch_schedule.samples_before(progress.global_batches),
        world_size=run.runtime.world_size,
        best_step=progress.best_step,
        score=run.selection.score(progress.metrics) if just_evaluated(progress) else None,
        config_digest=run.directory.digest,
        identity=run.directory.identity,
    )
    is_best = bool(progress.best) and progress.best_step == progress.step
    run.saver.submit(weights, trainer, position, is_best=is_best)
