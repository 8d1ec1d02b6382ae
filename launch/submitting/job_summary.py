"""What jobs took: starts, GPU hours and lost time, from sacct or from what the jobs have said."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.read_files import parse_json, read_json, read_text

FIELDS = "JobID,State,Start,End,AllocTRES"
JOB = re.compile(r"\d+(_\d+)?")
STARTED = re.compile(r"convoy: job (\S+), restart \d+, (\d+) ranks on .*, (\d{4}-\S+ \S+)$")
STILL = "started"
ENDED = re.compile(r"convoy: status (\d+), (\d{4}-\S+ \S+)$")


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a job, or of a task of an array, to its end."""

    task: str
    begin: float
    end: float | None
    """In seconds since 1970; None: it was never said."""
    state: str
    ranks: int = 0
    """0: Slurm itself counts."""
    gpus: int = 0
    cpus: int = 0
    """Both by Slurm's count."""

    @property
    def seconds(self) -> float:
        return max((self.end or self.begin) - self.begin, 0.0)

    def units(self, gpus: bool, threads: int) -> int:
        """GPUs it held, or cores."""
        if self.ranks:
            return self.ranks if gpus else self.ranks * threads
        return self.gpus if gpus else self.cpus


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run directory knows."""

    path: Path
    status: str
    step: int
    seconds: float
    """Of training, over all starts, without the steps that were taken again."""
    device: str
    threads: int
    times: list[float]
    """When its records were written."""


def summarize(jobs: Sequence[str], logs: Path) -> str:
    """A few lines on jobs that trained the same runs, such as those of a chain.

    Args:
        jobs: Their ids; 12_3 is a task of an array.
        logs: The folder where `launch/submit.py` had them print.

    Raises:
        InputError: If nothing is known of one of them.
    """
    runs = [run for path in run_paths(jobs, logs) if (run := read_run(path)) is not None]
    times = sorted(time for run in runs for time in run.times)
    starts: list[Start] = []
    for job in jobs:
        if not JOB.fullmatch(job):
            raise InputError("--summary", given=job, expected="the id of a job, such as 12 or 12_3")
        found = from_sacct(job) or from_logs(job, logs, times)
        if not found:
            raise InputError(
                "--summary",
                given=job,
                expected=f"a job that sacct knows, or that printed to {logs}",
            )
        starts += found
    return "\n".join(lines(jobs, starts, runs))


def lines(jobs: Sequence[str], starts: Sequence[Start], runs: Sequence[Trained]) -> Iterator[str]:
    """The summary, line by line."""
    tasks = len({start.task for start in starts})
    restarts = len(starts) - tasks
    waited = sum(
        max(b.begin - a.end, 0.0)
        for task in {start.task for start in starts}
        for a, b in pairwise([start for start in starts if start.task == task])
        if a.end is not None
    )
    of = f", {tasks} tasks" if tasks > len(jobs) else ""
    again = f", {clock(waited)} in the queue between them" if restarts else ""
    yield f"job {' '.join(jobs)}: {starts[-1].state}{of}, restarts {restarts}{again}"
    ran = sum(start.seconds for start in starts)
    gpus = any(start.gpus for start in starts) or any(run.device != "cpu" for run in runs)
    threads = runs[0].threads if runs else 1
    hours = sum(start.units(gpus, threads) * start.seconds for start in starts) / 3600
    yield f"ran {clock(ran)}: {hours:.2f} {'GPU' if gpus else 'CPU'} hours"
    trained = sum(run.seconds for run in runs)
    if runs and trained <= ran:
        share = f" ({1 - trained / ran:.1%})" if ran else ""
        yield (
            f"trained {clock(trained)}, lost {clock(ran - trained)}{share}: "
            "starts, evaluation, checkpoints, steps taken again"
        )
    elif runs:
        yield f"trained {clock(trained)}, in other jobs as well"
    if unsaid := sum(start.state == STILL for start in starts):
        yield f"{unsaid} of the starts did not say when it ended: killed, or still running"
    for run in runs:
        yield f"{run.path}: {run.status} at step {run.step:,}"


def run_paths(jobs: Sequence[str], logs: Path) -> list[Path]:
    """The run directories of jobs, as they were written down when they were submitted."""
    found: dict[Path, None] = {}
    for job in jobs:
        whole, _, task = job.partition("_")
        with contextlib.suppress(OSError, InputError, KeyError, TypeError):
            known: Any = read_json(logs / f"{whole}.json")
            for run in map(str, known["runs"]):
                if not task or run.endswith((f"_{task}", f"_seed{task}")):
                    found[Path(run)] = None
    return list(found)


def read_run(path: Path) -> Trained | None:
    """What a run directory says; None before it says anything."""
    try:
        summary: Any = read_json(path / "summary.json")
        environment: Any = read_json(path / "environment.json")
        records = read_text(path / "metrics.jsonl", most=1 << 29).splitlines()
        return Trained(
            path=path,
            status=str(summary["status"]),
            step=int(summary["step"]),
            seconds=float(summary["elapsed_seconds"]),
            device=str(environment["device"]),
            threads=int(environment["threads"]),
            times=[float(parse_json(line)["time"]) for line in records],
        )
    except (OSError, InputError, KeyError, TypeError, ValueError):
        return None


def from_sacct(job: str) -> list[Start]:
    """Every start of a job by Slurm's accounting; empty where there is none."""
    if shutil.which("sacct") is None:
        return []
    command = ["sacct", "--jobs", job, "--duplicates", "--allocations", "--parsable2"]
    try:
        done = subprocess.run(
            [*command, "--noheader", f"--format={FIELDS}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split("|") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    starts = []
    for task, state, begin, end, resources in (row for row in rows if len(row) == 5):
        if (began := moment(begin)) is None:
            continue  # not started
        counts = dict(item.split("=", 1) for item in resources.split(",") if "=" in item)
        gpus, cpus = (int(counts.get(kind, 0)) for kind in ("gres/gpu", "cpu"))
        starts.append(Start(task, began, moment(end), state, gpus=gpus, cpus=cpus))
    return starts


def from_logs(job: str, logs: Path, times: Sequence[float]) -> list[Start]:
    """Every start of a job by the lines that slurm/train.sbatch prints.

    Args:
        job: Its id; that of an array means all its tasks.
        logs: Where it printed.
        times: When the runs wrote their records; what ends a start that was killed.
    """
    patterns = [f"*-{job}.out"] if "_" in job else [f"*-{job}.out", f"*-{job}_*.out"]
    starts: list[Start] = []
    for path in sorted(file for pattern in patterns for file in logs.glob(pattern)):
        mine: list[Start] = []
        for line in read_text(path, most=1 << 28).splitlines():
            if begun := STARTED.match(line):
                began = datetime.fromisoformat(begun[3]).timestamp()
                mine.append(Start(begun[1], began, None, STILL, ranks=int(begun[2])))
            elif mine and (ended := ENDED.match(line)):
                end = datetime.fromisoformat(ended[2]).timestamp()
                mine[-1] = replace(mine[-1], end=end, state=f"status {ended[1]}")
        limits = [start.begin for start in mine[1:]] + [float("inf")]
        for start, limit in zip(mine, limits, strict=True):
            seen = [time for time in times if start.begin <= time < limit]
            starts.append(replace(start, end=start.end or (seen[-1] if seen else None)))
    return starts


def moment(text: str) -> float | None:
    """sacct's time in seconds since 1970; None for Unknown and None."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
