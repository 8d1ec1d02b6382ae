"""The whole of training, from top to bottom. The order of an optimizer step is in step.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import Loader
from data.loading.order import GlobalBatch, Plan
from data.samples import Batch
from trainer.checkpointer import Checkpointer
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.state import RunState
from trainer.due import Boundary, End, steps_until
from trainer.evaluator import Evaluator
from trainer.log import RunLog
from trainer.objective.selection import Selection
from trainer.profiling.profiler import NoProfiler, Profiler
from trainer.ranks.collectives import barrier
from trainer.ranks.drift import check_drift
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopPoll, StopRequest
from trainer.records.sinks import Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.steps import Steps


@dataclass(slots=True, kw_only=True)
class Run:
    """A run, assembled by build.py."""

    config: RunConfig
    runtime: Runtime
    data: Datasets
    plan: Plan
    loader: Loader
    state: RunState
    steps: Steps
    end: End
    log: RunLog
    evaluator: Evaluator
    checkpointer: Checkpointer
    selection: Selection
    sinks: Sinks
    directory: RunDirectory
    stop: StopRequest
    profiler: Profiler = field(default_factory=NoProfiler)
    watch: Stopwatch = field(default_factory=Stopwatch)


def train(run: Run) -> str:
    """Train until the end or until asked to stop; returns "completed" or "preempted".

    Raises:
        RunFailed: If the loss is not finite, ranks have drifted apart, or the last checkpoint could
            not be written; nothing is saved from then on.
    """
    progress, stop_requested = run.state.progress, StopPoll(run.stop, run.runtime)
    stopping = False
    if progress.interrupted:  # by a stop request, in an evaluation
        stopping = not run.evaluator.evaluate()
        run.checkpointer.save()
    run.watch.start()
    batches = run.profiler.batches(run.loader.stream(progress.global_batches))

    while not (stopping or run.end.reached):
        boundary = take_steps(run, batches)
        run.log.flush()  # the record before, now that the device has something to do
        stopping = stop_requested()
        check_drift_if_due(run, boundary)
        run.log.record_if_due(boundary)
        stopping = not run.evaluator.evaluate_if_due(boundary) or stopping
        run.checkpointer.save_if_due(boundary, stopping=stopping)

    run.checkpointer.wait()
    barrier(run.runtime)  # a launcher ends the ranks left when one leaves: not before it is saved
    return "completed" if run.end.reached and not progress.interrupted else "preempted"


def take_steps(run: Run, batches: Iterator[Batch]) -> Boundary:
    """As many optimizer steps as nothing is due between."""
    progress, before = run.state.progress, run.state.progress.step
    global_batches = upcoming(run)
    take = run.log.before_steps(run.steps, len(global_batches))
    with run.profiler.step():
        take(global_batches, batches)
    run.watch.stop(sum(global_batch.size for global_batch in global_batches))
    last = global_batches[-1]
    return Boundary(
        step=progress.step,
        stepped=progress.step > before,  # fp16 may have skipped it
        ended=last.epoch + 1 if last.ends_epoch else None,
    )


def upcoming(run: Run) -> list[GlobalBatch]:
    """The next global batches, of one size, up to one after which something may be due."""
    progress = run.state.progress
    count = min(
        run.steps.max_steps,
        run.end.steps_left,
        steps_until(progress.step, run.config.parallel.drift_every_steps),
        run.log.steps_until_due(),
        run.checkpointer.steps_until_due(),
    )
    return run.plan.next_global_batches(progress.global_batches, count)


def check_drift_if_due(run: Run, boundary: Boundary) -> None:
    if boundary.steps_due(run.config.parallel.drift_every_steps):
        check_drift(run.state.engine.module, run.runtime, boundary.step)
