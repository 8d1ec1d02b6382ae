"""What every command shares: the log, and exit statuses instead of tracebacks for bad input."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from configs.errors import InputError

REQUIRED = ("torch", "numpy", "jsonargparse", "yaml", "rich", "safetensors")
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: saved, and worth starting again."""


def is_main_process() -> bool:
    """Rank 0 by the launcher's variables; usable before anything heavy is imported."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def run_command(main: Callable[[Sequence[str]], int]) -> None:
    """Call a command with its arguments and leave with its status.

    A refused input is printed once, by rank 0, and ends every rank with status 2.
    """
    logging.basicConfig(
        format="%(message)s",
        stream=sys.stderr,
        level=logging.INFO if is_main_process() else logging.ERROR,
    )
    try:
        status = main(sys.argv[1:])
    except InputError as error:
        if is_main_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        status = EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        if error.name not in REQUIRED:
            raise
        if is_main_process():
            print(
                f"error: the package {error.name!r} is not installed for {sys.executable}: "
                "run `make train`, or `pip install -c constraints.txt -e .`",
                file=sys.stderr,
            )
        status = EXIT_BAD_INPUT
    sys.exit(status)
