"""Kill a run again and again, and compare it with one that was left alone.

    python launch/torture.py --kills 20

Every round trains a small network twice: once undisturbed, once with ranks, launchers and data
workers killed or stopped at random moments (while starting, between steps, in an evaluation, in the
middle of a checkpoint write), or a rank at a call of its start or of a save, and started again by
the same command. Both must end with the same bits and the same records, evaluations included, every
global batch must have held the same samples in every try, and nobody may outlive a try. In a round
with exact reduction every start has another number of ranks.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.entry import called, run_command


def main(argv: Sequence[str]) -> int:
    """Crash runs until enough kills have been dealt; status 1 if any run came out different."""
    parser = argparse.ArgumentParser(
        prog=called(__file__), description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--kills", type=int, default=20, help="kills in all (default: 20)")
    parser.add_argument("--minutes", type=float, help="begin no round after this time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill schedule")
    parser.add_argument("--output", type=Path, help="write the result to this JSON file")
    arguments = parser.parse_args(argv)

    from launch.crash_test.crash_report import show_rounds, write_rounds
    from launch.crash_test.crash_rounds import Round, crash_rounds
    from trainer.checkpoints.environment import describe_machine

    environment = describe_machine()  # before the output is a change to it
    with tempfile.TemporaryDirectory(prefix="crash-test-") as folder:
        rounds: list[Round] = []
        generator = random.Random(arguments.seed)
        last = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
        for finished in crash_rounds(Path(folder), arguments.kills, generator, last=last):
            rounds.append(finished)
            print(f"round {len(rounds)}: {asdict(finished)}", flush=True)
            if arguments.output is not None:  # after every round: a long test may be cut short
                write_rounds(arguments.output, rounds, arguments.seed, environment)
    show_rounds(rounds)
    return 0 if all(item.is_same for item in rounds) else 1


if __name__ == "__main__":
    run_command(main)
