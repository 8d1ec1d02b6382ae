"""Train a run: `torchrun --nproc_per_node=4 launch/train.py --config configs/mnist.yaml`, which
`convoy train --nproc 4 --config mnist` does, too."""

from __future__ import annotations

import gc
import logging
import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from launch.entry import called, num_ranks, run_command
from trainer.ranks.start_watch import watched_start
from trainer.ranks.stop_signals import (
    EXIT_PREEMPTED,
    StopRequest,
    hear_earlier_request,
    stop_on_signals,
)
from trainer.records.quiet_stream import QuietStream


def main(argv: Sequence[str]) -> int:
    """Parse, train, and return the exit status."""
    config = load_config(
        argv,
        prog=called(__file__),
        description="Train a model on one CPU, one GPU, or many GPUs on many nodes.",
    )
    if config.dry_run.world_size is not None:
        return dry_run(config)
    # torch takes most of the start-up time: a wrong key is refused before it is loaded, and a stop
    # request that comes meanwhile is remembered.
    sys.stdout = QuietStream(sys.stdout)
    with stop_on_signals() as stop, watched_start(EXIT_PREEMPTED) as started:
        hear_earlier_request(os.environ)
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
    logging.getLogger("convoy").info("loading torch ...")  # takes seconds from a slow disk
    gc.disable()  # what is imported stays: looking for garbage takes a twelfth of the start
    from trainer.session import joined, train_to_end

    gc.freeze()
    gc.enable()
    with joined(config) as runtime:
        status = train_to_end(config, runtime, stop, started)[1]
    return EXIT_PREEMPTED if status == "preempted" else 0


if __name__ == "__main__":
    run_command(main)
