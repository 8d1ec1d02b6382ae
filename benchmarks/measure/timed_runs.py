"""Fresh runs of Convoy that are started to time their steps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.measure.processes import run
from benchmarks.measure.run_times import seconds_per_step
from launch.entry import train_command

NOTHING_BUT_STEPS = ("--evaluate.every_epochs=null", "--checkpoint.every_epochs=null")


def time_step(
    *options: str,
    steps: int,
    record_every: int,
    warmup_steps: int,
    threads: int,
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Seconds of a step of a fresh run, start-up and evaluation left out.

    Args:
        options: Options of the run.
        steps: Steps that it takes.
        record_every: Steps between two of its records.
        warmup_steps: The first record that counts is the first one at this step or later.
        threads: CPU threads, divided among the ranks.
        ranks: Number of ranks.
        environment: Variables besides those of this process.

    Raises:
        CommandFailed: If the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = train_command(
            ranks,
            *options,
            "--name=run",
            f"--output_dir={folder}",
            f"--train.max_steps={steps}",
            f"--logging.every_steps={record_every}",
            "--logging.progress=off",
        )
        run(command, threads=max(threads // ranks, 1), environment=environment)
        return seconds_per_step(Path(folder) / "run", warmup_steps=warmup_steps)


def time_mlp_step(
    hidden: Sequence[int],
    batch_size: int,
    *options: str,
    steps: int,
    device: str,
    threads: int,
    ranks: int = 1,
) -> float:
    """Seconds of a step of an MLP on MNIST after the first quarter of so many full batches."""
    quarter = max(steps // 4, 1)
    return time_step(
        "--config=mnist",
        f"--model.kwargs={json.dumps({'hidden': hidden, 'dropout': 0.2})}",
        f"--train.global_batch_size={batch_size}",
        "--train.epochs=100000",
        f"--parallel.device={device}",
        "--data.drop_last=true",
        *NOTHING_BUT_STEPS,
        *options,
        steps=steps,
        record_every=quarter,
        warmup_steps=quarter,
        threads=threads,
        ranks=ranks,
    )
