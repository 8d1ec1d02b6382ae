"""Follow runs in a browser: `python launch/watch.py runs/`."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from configs.visible import visible
from launch.comparing.ranking import add_ranking_arguments
from launch.entry import called, run_command

EPILOG = """examples:
  python launch/watch.py
  python launch/watch.py runs/ /scratch/me/runs --metric val/loss

On a machine without a browser, such as the login node of a cluster: choose a port, and on your own
machine `ssh -L 8000:127.0.0.1:8000 NODE`.
  python launch/watch.py --port 8000
"""


def main(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C or SIGTERM."""
    arguments = build_parser().parse_args(argv)
    for folder in arguments.folders:
        if not folder.is_dir():
            raise InputError(
                str(folder),
                expected="a folder with runs in it",
                remedy="Runs are in OUTPUT_DIR, which is runs/ unless a config says otherwise.",
            )
    from launch.watching.page_server import PageServer
    from launch.watching.runs_below import RunsBelow

    runs = RunsBelow(
        arguments.folders, metric=arguments.metric, by=arguments.by, by_seed=arguments.group
    )
    names = ", ".join(str(folder) for folder in arguments.folders)
    with PageServer(runs, f"Runs in {names}", arguments.port) as server:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            print(visible(f"Watching {names}. Open {server.address}"), flush=True)
            print("Ctrl-C ends it; the runs go on.", flush=True)
            # The runs are read before a browser asks for them.
            threading.Thread(target=runs.since, args=(0,), daemon=True).start()
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print()
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=called(__file__),
        description="A page in a browser that follows running and finished runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help="where runs are, or a run directory (default: runs)",
    )
    parser.add_argument("--port", type=_port, default=0, help="(default: any that is free)")
    add_ranking_arguments(parser)
    return parser


def _port(text: str) -> int:
    port: Any = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 0 to 65535")
    return int(port)


if __name__ == "__main__":
    run_command(main)
