"""Kill ranks or data workers of a run at random moments, or ask them to stop."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from launch.crash_test.sample_recorder import EVALUATIONS
from launch.crash_test.scenarios import TIMEOUT_SECONDS, newest_try

MOMENTS = {"starting": 2, "writing": 3, "evaluating": 3, "training": 5}
START_SECONDS = 5.0


def kill_at_random(
    process: subprocess.Popen[bytes],
    run: Path,
    generator: random.Random,
    *,
    launcher: bool,
    workers: bool,
) -> str | None:
    """Wait for a random moment of a run, and kill or stop one or all of its ranks, or a worker.

    Args:
        process: The process that was started: a launcher, or the only rank.
        run: Folder of the run, in which its metrics and checkpoints appear.
        generator: Chooses the moment, the ranks and the signal.
        launcher: Whether the children of `process` are the ranks.
        workers: Whether ranks have data workers.

    Returns:
        The signal, whom it was sent to and when; None if the run had ended by then.
    """
    moment = generator.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    _wait_for(moment, process, run, generator)
    if process.poll() is not None:
        return None
    ranks = _children(process.pid) if launcher else []
    stops = 6 if moment == "evaluating" else 1
    kinds = {"SIGKILL rank": 6, "SIGKILL all": 3, "SIGTERM rank": stops, "SIGKILL worker": 0}
    if workers and moment != "starting":
        kinds["SIGKILL worker"] = 6
    kind = generator.choices(list(kinds), list(kinds.values()))[0]
    targets = [process.pid, *ranks]
    if kind != "SIGKILL all":
        targets = [generator.choice(ranks or [process.pid])]
    if kind == "SIGKILL worker":
        targets = _children(targets[0])[:1] or targets  # none yet: its rank
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if kind == "SIGTERM rank" else signal.SIGKILL)
    return f"{kind}, {moment}"


def _wait_for(
    moment: str, process: subprocess.Popen[bytes], run: Path, generator: random.Random
) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    lines_before, steps = _count_records(run), generator.randint(1, 25)
    evaluations = generator.randint(1, 40)
    pause = generator.uniform(0.0, START_SECONDS if moment == "starting" else 0.03)
    while process.poll() is None and time.monotonic() < deadline and moment != "starting":
        if moment == "writing" and any((run / "run/checkpoints").glob(".writing-*")):
            return
        if moment == "evaluating" and _count_lines(newest_try(run) / EVALUATIONS) >= evaluations:
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
    return _count_lines(run / "run/metrics.jsonl")


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def left_over(folder: Path, seconds: float) -> int:
    """Processes of a try that live on after so many seconds; known by their working folder."""
    deadline = time.monotonic() + seconds
    while (number := sum(found == folder.resolve() for found in _working_folders())) > 0:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return number


def _working_folders() -> Iterator[Path]:
    """Of every process that is no zombie and may be looked at."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            yield link.readlink()
