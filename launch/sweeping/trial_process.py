"""Trials as processes: started, watched, asked to stop, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data.parent_death import ask_at_parent_death
from launch.entry import EXIT_BAD_INPUT, program_of
from launch.sweeping.trials import Trial
from trainer.checkpoints.atomic_files import cannot_write
from trainer.ranks.stop_signals import EXIT_PREEMPTED

TAIL = 50_000


@dataclass(slots=True)
class Running:
    """A trial that is being trained; what it prints lies beside its directory."""

    trial: Trial
    process: subprocess.Popen[bytes]
    log: Path
    begin: int
    """Bytes of the log that earlier tries have written."""
    asked: bool = False

    def ask_to_stop(self) -> None:
        """It saves and leaves with 75; a second request would end it at once, so there is none."""
        if not self.asked and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.asked = True

    @property
    def outcome(self) -> str:
        """completed, preempted, refused or failed, once it has ended."""
        code = self.process.returncode
        known = {0: "completed", EXIT_PREEMPTED: "preempted", EXIT_BAD_INPUT: "refused"}
        return known.get(code, "failed")

    def last_words(self) -> str:
        """The last line of this try that says something."""
        lines = [line for line in self._said().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1].removeprefix("error: ")

    def _said(self) -> str:
        return self.log.read_bytes()[self.begin :][-TAIL:].decode(errors="replace")


def _open_log(path: Path) -> BinaryIO:
    """To append to; not through a link, which could lead to anybody's file where several people
    write to a folder."""

    def without_links(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o664)

    try:
        return open(path, "ab", opener=without_links)
    except OSError as error:
        raise cannot_write(path, error) from None


def start(trial: Trial, arguments: list[str], folder: Path, *, ranks: int) -> Running:
    """Train a trial in a process, or in several, in a session of its own.

    Args:
        trial: What to train; it continues what lies in its directory.
        arguments: Of all trials alike.
        folder: The folder of the sweep.
        ranks: Processes of the run.

    Raises:
        InputError: If its log cannot be written.
    """
    command = [
        *(sys.executable, *program_of("commands"), "train", f"--nproc={ranks}"),
        *(*arguments, *trial.arguments),
        f"--output_dir={folder}",
        f"--name={trial.name}",
        "--logging.progress=plain",
    ]
    log = folder / f"{trial.name}.log"
    with _open_log(log) as file:
        begin = file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A sweep that is killed takes its trials along.
            preexec_fn=partial(ask_at_parent_death, os.getpid()),
        )
    return Running(trial, process, log, begin)
