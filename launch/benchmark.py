"""Measure Convoy against its peers, its options, its growth and its floors: benchmarks/run.py.

python launch/benchmark.py --quick
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "benchmarks" / "run.py"

if __name__ == "__main__":
    # A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
    if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        sys.path[0] = str(ROOT)
    if not RUN.is_file():
        print(
            f"error: no {RUN}, expected a checkout of the project: measuring is no part of the "
            "installed package. Clone it and run this there.",
            file=sys.stderr,
        )
        sys.exit(2)
    runpy.run_path(str(RUN), run_name="__main__")
