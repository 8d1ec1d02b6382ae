"""Runs on the virtual cluster that are as slow as a test needs them to be."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import Cluster, Job
from tests.support.processes import ROOT
from tests.support.runs import records

RANKS = ("--nodes=2", "--ntasks-per-node=2", "--time=30")
STEPS = 88
WALK, CRAWL = 0.08, 0.8
"""Seconds of a step: slow enough to be stopped in mid-epoch, and almost standing still."""


@dataclass(frozen=True)
class Study:
    """Runs of one config in one folder. 88 steps in 4 epochs; the last step of each is short."""

    cluster: Cluster
    folder: Path

    def arguments(self, name: str) -> list[str]:
        pace = {"pace": str(self.folder / f"{name}.pace")}
        return [
            "--config=idx",
            f"--data.root={self.folder / 'idx'}",
            f"--output_dir={self.folder / 'runs'}",
            f"--name={name}",
            "--model.name=tests.slurm.paced:Paced",
            f"--model.kwargs={json.dumps(pace)}",
            "--train.global_batch_size=24",
            "--train.epochs=4",
            "--logging.every_steps=1",
            "--parallel.init_timeout_seconds=120",
            "--parallel.timeout_seconds=60",
        ]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def pace(self, name: str, seconds: float) -> None:
        """How long every forward pass of a run takes from now on, until it is requeued."""
        file = self.folder / f"{name}.pace"
        file.with_suffix(".new").write_text(str(seconds))
        file.with_suffix(".new").replace(file)

    def submit(
        self,
        name: str,
        *arguments: str,
        options: tuple[str, ...] = RANKS,
        seconds: float = 0.0,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
    ) -> Job:
        """`sbatch slurm/train.sbatch` for a run of 2 nodes with 2 ranks each."""
        self.pace(name, seconds)
        return self.cluster.submit(
            "slurm/train.sbatch",
            *self.arguments(name),
            *arguments,
            options=options,
            env=env,
            cwd=cwd,
        )

    def submit_to_site(
        self, name: str, *options: str, setup: tuple[str, ...] = (), seconds: float = 0.0
    ) -> tuple[list[Job], str]:
        """`launch/submit.py` for such a run: its jobs, and what the command printed."""
        self.pace(name, seconds)
        site = {"nodes": 2, "ranks_per_node": 2, "time": "30", "setup": list(setup)}
        logs = {"logs": str(self.folder / "logs"), "environment": {"OMP_WAIT_POLICY": "PASSIVE"}}
        file = self.folder / f"{name}.yaml"
        file.write_text(json.dumps({"sites": {"here": site | logs}}))
        said = self.cluster.call(
            *(sys.executable, "launch/submit.py", f"--sites={file}", *options),
            *self.arguments(name),
        )
        jobs = re.search(r"job ([\d, then]+) on site here", said)
        assert jobs, said
        return [Job(self.cluster, found) for found in re.findall(r"\d+", jobs[1])], said

    def printed(self, job: Job) -> str:
        """What rank 0 of a job that was submitted so has printed."""
        return (self.folder / "logs" / job.id / "rank0.log").read_text()

    def hold(self, job: Job, name: str, step: int) -> None:
        """Wait until a run has come this far, and let it crawl from there on."""
        self.reach(job, name, step)
        self.pace(name, CRAWL)

    def reach(self, job: Job, name: str, step: int) -> None:
        job.wait_until(lambda: self.last_step(name) >= step, f"at step {step}")

    def last_step(self, name: str) -> int:
        try:
            return int(records(self.run(name))[-1]["step"])
        except (OSError, ValueError, IndexError):  # not there yet, or a line half written
            return 0
