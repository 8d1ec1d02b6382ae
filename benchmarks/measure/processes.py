"""A command run to its end: what it printed, how long it took, how much memory it held."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.parent_death import ask_at_parent_death

TIMEOUT_SECONDS = 1800.0
GRACE_SECONDS = 40.0
"""Longer than torchrun waits for its ranks after SIGTERM."""
POLL_SECONDS = 0.005
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


_ends: list[float] = []
"""When commands must have ended, by the monotonic clock; the innermost `ended_within` is last."""


@contextlib.contextmanager
def ended_within(seconds: float) -> Iterator[None]:
    """No command that is started inside may go on after so many seconds from now."""
    _ends.append(min(time.monotonic() + seconds, *(_ends or [math.inf])))
    try:
        yield
    finally:
        _ends.pop()


class CommandFailed(RuntimeError):
    """A command that was measured ended with another status than 0."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended well."""

    stdout: str
    started_at: float
    """Unix time just before it was started."""
    peak_memory_bytes: int
    """Most resident memory of any one of its processes."""

    def last_json(self) -> dict[str, Any]:
        """The JSON object in the last line that holds one."""
        for line in reversed(self.stdout.splitlines()):
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise CommandFailed(f"no JSON line in its output:\n{self.stdout[-2000:]}")


def run(
    command: Sequence[str],
    *,
    threads: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run a command in a process group of its own, with this many CPU threads per process.

    Linux counts the memory of the process that starts another as that one's peak too, so a caller
    that is larger than what it measures would measure itself: import nothing heavy before.

    Args:
        command: The command line.
        threads: CPU threads of each process.
        timeout_seconds: How long it may take.
        cwd: Where it runs.
        environment: Variables besides those of this process.

    Raises:
        CommandFailed: If its status is not 0 or it takes too long; with the end of its output.
    """
    if _ends:
        timeout_seconds = min(timeout_seconds, _ends[-1] - time.monotonic())
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started_at, began = time.time(), time.monotonic()
        with _signals_held() as let_go:
            process = subprocess.Popen(
                command,
                env=_environment(threads) | dict(environment or {}),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                # What kills a benchmark tells nobody; a launcher that is asked ends its ranks.
                preexec_fn=partial(ask_at_parent_death, os.getpid()),
            )
            try:
                let_go()
                with _patience(process.pid, timeout_seconds):
                    _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            except BaseException:  # Ctrl-C: it is in another session and has not heard of it
                _signal_group(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
                raise
            finally:
                _signal_group(process.pid, signal.SIGKILL)  # whatever it left behind
        late = time.monotonic() - began >= timeout_seconds
        stdout.seek(0)
        stderr.seek(0)
        output, errors = (file.read().decode(errors="replace") for file in (stdout, stderr))
    if process.returncode != 0:
        why = f"no end after {timeout_seconds:.0f} s" if late else f"status {process.returncode}"
        raise CommandFailed(f"{why}: {' '.join(command)}\n{(output + errors)[-3000:]}")
    return Finished(output, started_at, usage.ru_maxrss * 1024)


def kill_when(ready: Callable[[], bool], command: Sequence[str], *, threads: int) -> None:
    """Run a command until `ready()`, and kill it then, with all that it started.

    Raises:
        CommandFailed: If it ends before, or takes too long.
    """
    process = subprocess.Popen(
        command,
        env=_environment(threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=partial(ask_at_parent_death, os.getpid()),
    )
    try:
        while not ready():
            if process.poll() is not None or (_ends and time.monotonic() > _ends[-1]):
                raise CommandFailed(f"not ready to be killed in time: {' '.join(command)}")
            time.sleep(POLL_SECONDS)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _environment(threads: int) -> dict[str, str]:
    """Of a command: its packages are those of this checkout, installed or not."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return env | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _patience(pid: int, seconds: float) -> Iterator[None]:
    """Ask a process group to leave after this long, and end it if it does not.

    A launcher that is asked ends its ranks, which may be in other process groups.
    """
    timers = [
        threading.Timer(seconds, _signal_group, [pid, signal.SIGTERM]),
        threading.Timer(seconds + GRACE_SECONDS, _signal_group, [pid, signal.SIGKILL]),
    ]
    try:
        for timer in timers:
            timer.daemon = True  # interrupted while it starts, it must not keep the program
            timer.start()
        yield
    finally:
        for timer in timers:
            timer.cancel()


@contextlib.contextmanager
def _signals_held() -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C and SIGTERM until what it yields is called.

    One that arrived between a child's start and the `try` that ends it would orphan the child.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda it, _: arrived.append(it)) for number in numbers]

    def let_go() -> None:
        while handlers:
            signal.signal(numbers[len(handlers) - 1], handlers.pop())
        while arrived:
            signal.raise_signal(arrived.pop())

    try:
        yield let_go
    finally:
        let_go()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
