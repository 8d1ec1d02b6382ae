"""A run from its config to its end: what `launch/train.py` and `trainer.fit` both call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.errors import InputError
from configs.identity import identity
from configs.schema import RunConfig
from trainer.build import build
from trainer.cards import closing
from trainer.checkpoints.run_directory import RunDirectory
from trainer.loop import Run, train
from trainer.ranks.collectives import gather_objects
from trainer.ranks.deterministic import deterministic_algorithms
from trainer.ranks.hang_watch import hangs_explained
from trainer.ranks.runtime import Runtime, choose_device, detect, process_group
from trainer.ranks.sharing import sharing_noticed
from trainer.ranks.stop_signals import StopRequest


@contextmanager
def joined(config: RunConfig) -> Iterator[Runtime]:
    """This rank on its device and, inside, in the process group of all that were started.

    Raises:
        InputError: If the device or the others cannot be had, or they were given another run; with
            `deterministic: true`, for an operation that is not.
    """
    if config.profile.enabled:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells users about its own stages
    runtime = choose_device(detect(os.environ), config.parallel)
    with (
        deterministic_algorithms(config, runtime.device),
        process_group(runtime, config.parallel),
    ):
        check_alike(runtime, config)
        yield runtime


def check_alike(runtime: Runtime, config: RunConfig) -> None:
    """Refuse ranks that would train another run each; every rank calls it.

    Raises:
        InputError: On every rank, with the first key that is not the same.
    """
    mine, *others = gather_objects(runtime, identity(config))
    for rank, other in enumerate(others, start=1):
        for key in mine | other:
            if mine.get(key) != other.get(key):
                error = InputError(
                    f"{key} of rank {rank}",
                    given=other.get(key),
                    expected=f"{mine.get(key)!r}, as rank 0 was given",
                    remedy="Give all ranks the same; what is drawn at random before the run, such "
                    "as a split of the data, must be drawn under a seed.",
                )
                error.shared = True
                raise error


def train_to_end(
    config: RunConfig,
    runtime: Runtime,
    stop: StopRequest,
    started: Callable[[], None] = lambda: None,
) -> tuple[Run, str]:
    """Build a run, or what is left of it, and train it; every rank calls it, among the others.

    Rank 0 prints what was reached.

    Args:
        config: The run.
        runtime: This rank.
        stop: Asked for at every step.
        started: Called when all is built, before the first step.

    Returns:
        The run, and its status: completed or preempted. Its directory may be written by others.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
        RunFailed: If it cannot go on.
    """
    directory = RunDirectory(config)
    try:
        run = build(config, runtime, stop, directory)
        started()
        first_step = run.state.progress.step
        status = "failed"
        try:
            run.log.summary("running")
            progress, path = run.state.progress, run.directory.path
            explained = hangs_explained(runtime, path, lambda: progress.step)
            with explained, sharing_noticed(runtime):
                status = train(run)
        finally:
            run.steps.close()
            run.log.summary(status)
            run.sinks.finish(status)
            run.checkpointer.close()
        sizes = run.plan.global_batch(0).micro_batch_sizes
        profile = run.profiler.report(run.state.engine.module, sizes)
    finally:
        directory.release()
    if runtime.is_main:
        if profile is not None:
            print(profile)
        print(closing(run, status, first_step))
    return run, status
