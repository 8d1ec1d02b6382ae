"""Trials as processes: started, watched, asked to stop, and never left behind."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch.entry import EXIT_BAD_INPUT, EXIT_PREEMPTED, train_command
from launch.sweeping.trials import Trial
from trainer.ranks.stop_signals import stop_with_parent

TAIL = 2000


@dataclass(slots=True)
class Running:
    """A trial that is being trained; what it prints lies beside its directory."""

    trial: Trial
    process: subprocess.Popen[bytes]
    log: Path

    def ask_to_stop(self) -> None:
        """It saves and leaves with 75; asked twice within a second it has heard once."""
        self.process.send_signal(signal.SIGTERM)

    @property
    def outcome(self) -> str:
        """completed, preempted, refused or failed, once it has ended."""
        status = self.process.returncode
        known = {0: "completed", EXIT_PREEMPTED: "preempted", EXIT_BAD_INPUT: "refused"}
        return known.get(status, "failed")

    def last_words(self) -> str:
        """The last line of its log that says something."""
        text = self.log.read_bytes()[-TAIL:].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [""])[-1].removeprefix("error: ")


def start(trial: Trial, arguments: list[str], folder: Path, *, ranks: int) -> Running:
    """Train a trial in a process, or with torchrun in several, in a session of its own.

    Args:
        trial: What to train; it continues what lies in its directory.
        arguments: Of all trials alike.
        folder: The folder of the sweep.
        ranks: Processes of the run.
    """
    command = train_command(
        ranks,
        *(*arguments, *trial.arguments),
        f"--output_dir={folder}",
        f"--name={trial.name}",
        "--logging.progress=plain",
    )
    log = folder / f"{trial.name}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=stop_with_parent,  # a sweep that is killed takes its trials along
        )
    return Running(trial, process, log)
