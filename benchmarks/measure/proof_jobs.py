"""The networks of the proof on a GPU, the ways to execute them, and their measured runs."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure.peers import NO_TIME
from benchmarks.measure.processes import ROOT, CommandFailed, run
from benchmarks.measure.timed_runs import NOTHING_BUT_STEPS

Found = dict[str, Any]
Seen = Callable[[Found], None]
MEASURED_RUN = ROOT / "benchmarks" / "measured_run.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the proof is taken."""

    device: str
    threads: int
    measured: list[Found] = field(default_factory=list)
    """Rows of the part that is being measured which an earlier call has."""

    def known(self, row: Found) -> Found | None:
        """What an earlier call measured of a network in a mode."""
        same = [
            (old["name"], old.get("mode")) == (row["name"], row.get("mode"))
            for old in self.measured
        ]
        return next(itertools.compress(self.measured, same), None)

    def beside(self, rows: Sequence[Found]) -> list[Found]:
        """What is known by now: these rows, and those of an earlier call."""
        return [*rows, *(old for old in self.measured if old not in rows)]

    @property
    def dry(self) -> bool:
        """Whether it only shows that every part works: on a CPU, with small sizes."""
        return self.device == "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A network, its data and the size of its steps."""

    name: str
    title: str
    options: tuple[str, ...]
    steps: int
    tokens_per_sample: int | None = None
    """Of a language model, whose rate is in tokens."""

    def run(self, machine: Machine, folder: Path, *more: str) -> list[str]:
        """Options of a run in `folder`/run that takes steps and does nothing else."""
        return [
            *self.options,
            "--name=run",
            f"--output_dir={folder}",
            f"--parallel.device={machine.device}",
            f"--train.max_steps={self.steps}",
            "--train.epochs=100000",
            "--data.drop_last=true",
            f"--logging.every_steps={max(self.steps // 4, 1)}",
            "--logging.progress=off",
            *more,
        ]


def kwargs(**values: object) -> str:
    return f"--model.kwargs={json.dumps(values)}"


def pictures(model: str, batch: int, *more: str) -> tuple[str, ...]:
    return (
        "--config=cifar10_resnet",
        "--data.dataset=benchmarks.measure.synthetic:pictures",
        f"--model.name={model}",
        f"--train.global_batch_size={batch}",
        *more,
    )


def jobs(dry: bool) -> list[Job]:
    """ResNet-18 on pictures of CIFAR's size, ViT-S on the same, and a decoder of GPT-2's size."""
    adam = ("--optimizer.name=adamw", "--optimizer.lr=1e-3", "--optimizer.nesterov=false")
    vit = (
        {"depth": 1, "width": 32}
        if dry
        else {"depth": 12, "width": 384, "heads": 6, "mlp_ratio": 4}
    )
    gpt = {"depth": 1, "width": 32, "heads": 2} if dry else {"depth": 12, "width": 768, "heads": 12}
    context = 64 if dry else 1024
    return [
        Job(
            name="resnet18",
            title="ResNet-18",
            options=pictures("resnet18", 4 if dry else 512),
            steps=4 if dry else 80,
        ),
        Job(
            name="vit",
            title="ViT-S/4",
            options=pictures("vit", 8 if dry else 512, kwargs(**vit), *adam),
            steps=4 if dry else 80,
        ),
        Job(
            name="gpt",
            title="GPT, 85 million parameters",
            options=(
                "--config=gpt_chars",
                "--data.dataset=benchmarks.measure.synthetic:windows",
                f"--data.kwargs={json.dumps({'context': context})}",
                kwargs(**gpt),
                "--schedule.warmup_steps=0",
                f"--train.global_batch_size={4 if dry else 32}",
                "--precision.dtype=bf16",
            ),
            steps=4 if dry else 40,
            tokens_per_sample=context,
        ),
    ]


MAIN = Job(name="mlp", title="MLP of the main job", options=("--config=mnist",), steps=400)


EXECUTED = ("--compile.enabled=false", "--compile.capture=false")
CAPTURED = ("--compile.enabled=false", "--compile.capture=true")
MODES = {
    "eager": EXECUTED,
    "captured": CAPTURED,
    "compiled and captured": ("--compile.enabled=true", "--compile.capture=true"),
    "compiled": ("--compile.enabled=true", "--compile.capture=false"),
}


def measured_runs(
    machine: Machine,
    items: Sequence[tuple[Job, str, tuple[str, ...]]],
    seconds: float,
    seen: Seen,
    *first: str,
) -> Found:
    """One row for each job and mode: what `measured_run.py` says, or why there is nothing.

    Args:
        machine: Where they run.
        items: Jobs, names of modes and options of these.
        seconds: Nothing more is begun when they have passed.
        seen: Told what there is after every run.
        first: Arguments before the options.
    """
    end = time.monotonic() + seconds
    rows: list[Found] = []
    for job, mode, options in items:
        row: Found = {"name": job.name, "title": job.title, "mode": mode, "options": options}
        row["tokens_per_sample"] = job.tokens_per_sample
        if known := machine.known(row):
            row = known
        elif time.monotonic() > end:
            row |= {"status": "skipped", "reason": NO_TIME}
        else:
            print(f"{job.title}, {mode}", file=sys.stderr, flush=True)
            row |= _measured(machine, job, (*options, *NOTHING_BUT_STEPS), first)
        rows.append(row)
        seen({"rows": machine.beside(rows)})
    return {"rows": rows}


def _measured(machine: Machine, job: Job, options: Sequence[str], first: Sequence[str]) -> Found:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        keys = job.run(machine, Path(folder), *options)
        command = [sys.executable, str(MEASURED_RUN), *first, *keys]
        try:
            return run(command, threads=machine.threads).last_json() | {"status": "measured"}
        except CommandFailed as error:
            return {"status": "failed", "reason": str(error)}
