"""Ranks on this machine, started by torchrun of which nothing is seen: what a rank says is said
once, and the status of the run is that of the command."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs.visible import visible
from launch.entry import STATUS_FILE
from trainer.ranks.cores import fair_threads
from trainer.ranks.stop_signals import EXIT_PREEMPTED, stop_on_signals

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""Handed on to the ranks, which save and leave."""


def start_ranks(ranks: int, program: Sequence[str]) -> int:
    """Run a program on several ranks, and return its exit status.

    Args:
        ranks: How many.
        program: What Python is called with, once for each.
    """
    logging.getLogger("convoy").info(f"starting {ranks} ranks ...")  # torchrun takes a while, too
    if "OMP_NUM_THREADS" not in os.environ:  # torchrun would choose 1, and say so at length
        os.environ["OMP_NUM_THREADS"] = str(int(fair_threads(ranks, os.environ)))
    heard = [name for name in SIGNALS if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]

    with stop_on_signals() as stop:
        from torch.distributed.elastic.multiprocessing import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import get_args_parser, run
    if stop.pending:
        return EXIT_PREEMPTED
    logging.disable()  # it would tell of what the ranks tell better
    with tempfile.TemporaryDirectory(prefix="convoy-") as folder:
        status = Path(folder, "status")
        os.environ[STATUS_FILE] = str(status)
        options = ["--standalone", f"--nproc-per-node={ranks}", f"--log-dir={folder}"]
        options += [f"--signals-to-handle={','.join(heard)}", "--no-python", sys.executable, "-u"]
        try:
            run(get_args_parser().parse_args([*options, *program]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            return explain(*error.get_first_failure())
        except SignalException as request:
            if status.exists():
                return int(status.read_text())
            say(f"error: ended by {request.sigval.name} before the ranks had saved")
            return 128 + request.sigval
    return 0


def explain(rank: int, failure: ProcessFailure) -> int:
    """Print what the rank that failed first has not printed itself, and return its exit status."""
    message = failure.error_file_data["message"]
    if isinstance(message, dict):  # it left its exception in a file
        say(f"rank {rank} failed:\n{message['extraInfo']['py_callstack']}")
    if failure.exitcode >= 0:
        return failure.exitcode
    hint = " (did the memory run out?)" if failure.exitcode == -signal.SIGKILL else ""
    say(f"error: rank {rank} was ended by {failure.signal_name()}{hint}")
    return 128 - failure.exitcode


def say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)
