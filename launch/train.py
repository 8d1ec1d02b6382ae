"""Train a run: `torchrun --nproc_per_node=4 launch/train.py --config configs/mnist.yaml`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from launch.entry import EXIT_PREEMPTED, Deaf, is_main_process, num_ranks, run_command
from trainer.ranks.start_watch import watched_start
from trainer.ranks.stop_signals import StopRequest, stop_on_signals, stop_with_parent

if TYPE_CHECKING:
    from trainer.loop import Run


def main(argv: Sequence[str]) -> int:
    """Parse, train, and return the exit status."""
    config = load_config(
        argv,
        prog="launch/train.py",
        description="Train a model on one CPU, one GPU, or many GPUs on many nodes.",
    )
    if config.dry_run.world_size is not None:
        return dry_run(config)
    # torch takes most of the start-up time: a wrong key is refused before it is loaded, and a stop
    # request that comes meanwhile is remembered.
    sys.stdout = Deaf(sys.stdout)
    with stop_on_signals() as stop, watched_start(EXIT_PREEMPTED) as started:
        if num_ranks() > 1:
            stop_with_parent()
        return train(config, stop, started)


def dry_run(config: RunConfig) -> int:
    """Report on a run of another world, in this one process, and return the exit status."""
    if num_ranks() > 1:
        raise InputError(
            "dry_run.world_size",
            given=config.dry_run.world_size,
            expected="one process, which speaks for all ranks",
            remedy="Start it with plain python instead of torchrun or srun.",
        )
    from launch.forecast.dry_run import examine
    from launch.forecast.dry_run_report import show

    show(examine(config))
    return 0


def train(config: RunConfig, stop: StopRequest, started: Callable[[], None] = lambda: None) -> int:
    """Train a run on this rank, call `started` before its first step, return the exit status."""
    from trainer.build import build
    from trainer.loop import fit
    from trainer.ranks.runtime import choose_device, detect, process_group

    if config.profile.enabled:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells users about its own stages
    runtime = choose_device(detect(os.environ), config.parallel)
    with process_group(runtime, config.parallel):
        run = build(config, runtime, stop)
        started()
        first_step = run.state.progress.step
        status = "failed"
        try:
            run.log.summary("running")
            status = fit(run)
        finally:
            run.log.summary(status)
            run.sinks.finish(status)
            run.checkpointer.close()

        sizes = [micro.size for micro in run.plan.global_batch(0).micro_batches]
        profile = run.profiler.report(run.state.engine.module, sizes)

    if is_main_process():
        if profile is not None:
            print(profile)
        progress = run.state.progress
        if status == "preempted":
            print(f"Stopped on request at step {progress.step}; saved in {run.directory.path}.")
        else:
            if progress.step == first_step:
                print(
                    f"This run was already finished at step {progress.step}. Train again with "
                    "--checkpoint.resume never or another --name, or on with more --train.epochs."
                )
            print(outcome(run))
    return EXIT_PREEMPTED if status == "preempted" else 0


def outcome(run: Run) -> str:
    """What a finished run reached, on which samples, and with which weights."""
    from trainer.records.console import shown

    progress, name, count = run.state.progress, run.selection.metric, len(run.data.test)
    final = progress.test or progress.metrics
    line = f"Final test {name} {shown(name, final[name])} on {count:,} samples"
    best = shown(name, progress.best[name]) if progress.best else "unknown"
    if not progress.test:
        line += f" (best {best} at step {progress.best_step}, chosen on these very samples)"
    elif progress.best_step == progress.step:
        line += f" (the weights that are best on the validation set: {best})"
    elif progress.test_best:
        line += (
            f"; {shown(name, progress.test_best[name])} with the weights of step "
            f"{progress.best_step}, the best on the validation set ({best})"
        )
    return f"{line}, run directory {run.directory.path}"


if __name__ == "__main__":
    run_command(main)
