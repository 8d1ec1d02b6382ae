"""What a crash test trains, on how many ranks, and the command that starts it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.parent_death import ask_at_parent_death
from launch.crash_test import killed_train, sample_recorder
from launch.entry import train_command

TIMEOUT_SECONDS = 600.0
"""How long a start may take, and how long a moment to kill it is waited for."""
NUM_SAMPLES, BATCH, EPOCHS = 203, 16, 9  # 13 steps an epoch, the last one short


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is trained, and on how many ranks each start may run."""

    name: str
    ranks: tuple[int, ...]
    options: tuple[str, ...] = ()

    @property
    def workers(self) -> bool:
        """Whether its ranks have data workers."""
        return any(option.startswith("--data.workers") for option in self.options)


SCENARIOS = (
    Scenario("1 rank, cosine", (1,), ("--schedule.name=cosine",)),
    Scenario("2 ranks, workers, fp16", (2,), ("--data.workers=1", "--precision.dtype=fp16")),
    Scenario(
        "exact, 1 to 4 ranks", (1, 2, 4), ("--parallel.reduction=exact", "--parallel.shards=4")
    ),
    Scenario("3 ranks", (3,), ("--optimizer.name=sgd",)),
    Scenario("1 rank, validation, workers", (1,), ("--data.validation=0.2", "--data.workers=2")),
    Scenario("2 ranks", (2,), ("--train.ema_decay=0.9", "--train.clip_norm=1")),
)


def start_training(
    run: Path, number: int, ranks: int, scenario: Scenario, crash_at: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a run, or start it again: the same command every time but for the number of ranks.

    Args:
        run: Folder of the run.
        number: Starts before this one; each has a working folder of its own, where its ranks record
            their samples and its output goes.
        ranks: Number of ranks.
        scenario: What is trained.
        crash_at: At which call the run kills itself; see `killed_train`.
    """
    folder = run / f"try-{number:03d}"
    folder.mkdir(parents=True)
    command = train_command(
        ranks,
        "--name=run",
        f"--output_dir={run}",
        f"--data.dataset={sample_recorder.__name__}:samples",
        f'--model.kwargs={{"num_samples": {NUM_SAMPLES}}}',
        f"--model.name={sample_recorder.__name__}:SampleRecorder",
        f"--train.global_batch_size={BATCH}",
        f"--train.epochs={EPOCHS}",
        "--evaluate.batch_size=4",
        "--checkpoint.every_steps=3",
        "--logging.every_steps=1",
        "--logging.progress=off",
        "--parallel.timeout_seconds=60",
        *scenario.options,
        program="train" if crash_at is None else "crash_test.killed_train",
    )
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if crash_at is not None:
        env[killed_train.VARIABLE] = crash_at
    with (folder / "output.txt").open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            preexec_fn=partial(ask_at_parent_death, os.getpid()),
        )


def newest_try(run: Path) -> Path:
    """The working folder of the latest start."""
    return max(run.glob("try-*"))


def last_output(run: Path) -> str:
    """The end of what the latest try of a run printed, 3,000 characters at most."""
    return (newest_try(run) / "output.txt").read_text(errors="replace")[-3000:]
