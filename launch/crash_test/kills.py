"""Kills of ranks, launchers and data workers, at random moments or at a call; requests to stop."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launch.crash_test.killed_train import KILLED, SAVE, START
from launch.crash_test.sample_recorder import EVALUATIONS
from launch.crash_test.scenarios import TIMEOUT_SECONDS, newest_try

START_SECONDS = 5.0
CALLS = {START: 100, SAVE: 120}
"""Up to which call of a start, or of the saves of a run, it is killed at one."""
RANK, ALL, STOP = "SIGKILL rank", "SIGKILL all", "SIGTERM rank"
LAUNCHER, WORKER = "SIGKILL launcher", "SIGKILL worker"


@dataclass(frozen=True, slots=True)
class Kill:
    """What is done to whom, and when."""

    kind: str
    moment: str

    @property
    def label(self) -> str:
        return f"{self.kind}, {self.moment}"

    @property
    def where(self) -> str | None:
        """In what the process kills itself at a call; None: at a moment that is waited for."""
        return self.moment.removeprefix("at a call of a ") if "call" in self.moment else None


AT_START, AT_SAVE = Kill(RANK, f"at a call of a {START}"), Kill(RANK, f"at a call of a {SAVE}")
KILLS = {
    **{Kill(kind, "starting"): 1 for kind in (RANK, ALL, STOP, LAUNCHER)},
    **{Kill(kind, "training"): 1 for kind in (ALL, STOP, LAUNCHER)},
    **{Kill(kind, "writing"): 1 for kind in (ALL, STOP, WORKER)},
    **{Kill(kind, "evaluating"): 1 for kind in (RANK, ALL, WORKER)},
    **{Kill(RANK, moment): 2 for moment in ("training", "writing")},
    Kill(WORKER, "training"): 2,
    Kill(STOP, "evaluating"): 3,
    AT_START: 3,
    AT_SAVE: 4,
}
"""How often each comes in a pack."""


class Pack:
    """Kills in random order, none of which is left out: a pack is dealt before the next begins."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.cards: list[Kill] = []

    def draw(self, *, launcher: bool, workers: bool) -> Kill:
        """The next one for a run with or without a launcher and data workers; others wait."""
        for _ in range(2):
            for number, kill in enumerate(self.cards):
                if (launcher or kill.kind != LAUNCHER) and (workers or kill.kind != WORKER):
                    return self.cards.pop(number)
            more = [kill for kill, count in KILLS.items() for _ in range(count)]
            self.generator.shuffle(more)
            self.cards += more
        raise AssertionError("a pack has kills for every run")

    def put_back(self, kill: Kill) -> None:
        """It could not be dealt: the run had ended by then."""
        self.cards.insert(0, kill)


def deal(
    kill: Kill,
    process: subprocess.Popen[bytes],
    run: Path,
    generator: random.Random,
    *,
    launcher: bool,
) -> bool:
    """Wait for the moment of a kill, and deal it.

    Args:
        kill: What to do; one at a call was planned when the process was started.
        process: The process that was started: a launcher, or the only rank.
        run: Folder of the run, in which its metrics and checkpoints appear.
        generator: Chooses the moment more closely, and the rank.
        launcher: Whether the children of `process` are the ranks.

    Returns:
        Whether it was dealt; False if the run had ended by then, or had no worker.
    """
    if kill.where is not None:
        process.wait(TIMEOUT_SECONDS)
        return (newest_try(run) / KILLED).exists()
    _wait_for(kill.moment, process, run, generator)
    if process.poll() is not None:
        return False
    ranks = children(process.pid) if launcher else [process.pid]
    rank = generator.choice(ranks or [process.pid])
    targets = {
        ALL: [process.pid, *ranks],
        LAUNCHER: [process.pid],
        WORKER: _workers(rank) if kill.kind == WORKER else [],
    }.get(kill.kind, [rank])
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if kill.kind == STOP else signal.SIGKILL)
    return bool(targets)


def _workers(rank: int) -> list[int]:
    """A data worker of a rank, waited for a while: workers start one by one."""
    deadline = time.monotonic() + START_SECONDS
    while not (found := children(rank)) and time.monotonic() < deadline:
        time.sleep(0.001)
    return found[:1]


def last_call(run: Path) -> str | None:
    """Where the newest try killed itself, if it did: an audit event and what it was about."""
    path = newest_try(run) / KILLED
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return f"{found['event']} {Path(found['what']).name}".strip()


def _wait_for(
    moment: str, process: subprocess.Popen[bytes], run: Path, generator: random.Random
) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    lines_before, steps = _count_records(run), generator.randint(1, 25)
    left_before = _being_written(run)
    evaluations = generator.randint(1, 40)
    pause = generator.uniform(0.0, START_SECONDS if moment == "starting" else 0.03)
    while process.poll() is None and time.monotonic() < deadline and moment != "starting":
        if moment == "writing" and _being_written(run) - left_before:
            return
        if moment == "evaluating" and _count_lines(newest_try(run) / EVALUATIONS) >= evaluations:
            return
        if moment == "training" and _count_records(run) - lines_before >= steps:
            break
        time.sleep(0.001)
    time.sleep(pause)


def children(pid: int) -> list[int]:
    """Direct children of a process; none if it has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _being_written(run: Path) -> set[tuple[str, int]]:
    """Folders of checkpoints that are no whole ones, and since when they are there."""
    found = set()
    with contextlib.suppress(OSError):  # not there yet, or whole by now
        for name in os.listdir(run / "run/checkpoints"):
            if name.startswith(".writing-"):
                found.add((name, (run / "run/checkpoints" / name).stat().st_ino))
    return found


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
