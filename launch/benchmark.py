"""Measure Convoy against its peers, its options, its growth and its floors: benchmarks/run.py.

python launch/benchmark.py --quick
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from launch.entry import run_command

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Hand the arguments on to benchmarks/run.py, which ends the process with its status.

    Raises:
        InputError: Where the project is installed without its repository.
    """
    program = ROOT / "benchmarks" / "run.py"
    if not program.is_file():
        raise InputError(
            "benchmark",
            expected="a checkout of the project: measuring is no part of the installed package",
            remedy="Clone it and run this there.",
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    sys.argv = [str(program), *argv]
    runpy.run_path(str(program), run_name="__main__")
    return 0


if __name__ == "__main__":
    run_command(main)
