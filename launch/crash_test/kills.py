"""Kill ranks of a run at random moments: while starting, between steps, while saving."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from launch.crash_test.scenarios import TIMEOUT_SECONDS


def kill_at_random(
    process: subprocess.Popen[bytes], run: Path, generator: random.Random, *, launcher: bool
) -> str | None:
    """Wait for a random moment of a run, and kill one or all of its ranks.

    Args:
        process: The process that was started: a launcher, or the only rank.
        run: Folder of the run, in which its metrics and checkpoints appear.
        generator: Chooses the moment, the ranks and the signal.
        launcher: Whether the children of `process` are the ranks.

    Returns:
        The signal, whom it was sent to and when; None if the run had ended by then.
    """
    moment = generator.choices(("starting", "writing", "training"), (2, 3, 5))[0]
    _wait_for(moment, process, run, generator)
    if process.poll() is not None:
        return None
    ranks = _children(process.pid) if launcher else []
    kind = generator.choices(("SIGKILL rank", "SIGKILL all", "SIGTERM rank"), (6, 3, 1))[0]
    targets = [process.pid, *ranks]
    if kind != "SIGKILL all":
        targets = [generator.choice(ranks or [process.pid])]
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if kind == "SIGTERM rank" else signal.SIGKILL)
    return f"{kind}, {moment}"


def _wait_for(
    moment: str, process: subprocess.Popen[bytes], run: Path, generator: random.Random
) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    lines_before, steps = _count_records(run), generator.randint(1, 25)
    pause = generator.uniform(0.0, 4.0 if moment == "starting" else 0.03)
    while process.poll() is None and time.monotonic() < deadline and moment != "starting":
        if moment == "writing" and any((run / "run/checkpoints").glob(".writing-*")):
            return
        if moment == "training" and _count_records(run) - lines_before >= steps:
            break
        time.sleep(0.001)
    time.sleep(0.0 if moment == "writing" else pause)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _count_records(run: Path) -> int:
    path = run / "run/metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
