"""One submission: a site, a script of slurm/ and the arguments of launch/train.py, for sbatch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import InputError
from launch.submitting.site_script import sbatch_options, site_script
from launch.submitting.sites import CHECKOUT, Site

TRAIN, ARRAY = CHECKOUT / "slurm" / "train.sbatch", CHECKOUT / "slurm" / "array.sbatch"


def check_scripts() -> None:
    """Refuse where only the package is installed."""
    if not TRAIN.is_file():
        expected = "a checkout of the project, which has the scripts for Slurm"
        raise InputError(f"{TRAIN} is not there", expected=expected)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job, or an array of them, that is trained until it is finished."""

    name: str
    """Of the job."""
    site_name: str
    site: Site
    arguments: list[str]
    """Of launch/train.py."""
    runs: list[Path] = field(default_factory=list)
    """The run directories it trains in."""
    array: str | None = None
    """Numbers of tasks as Slurm writes them, such as 0-4%2."""
    lines: Path | None = None
    """A file with a line of overrides for each task; None: the tasks are seeds."""
    restarts: int | None = None
    """At most; None: as the site says."""

    def __post_init__(self) -> None:
        check_scripts()

    @property
    def logs(self) -> Path:
        return self.site.logs_folder

    @property
    def script(self) -> str:
        """What train.sbatch reads before it starts the ranks."""
        return site_script(self.site_name, self.site, self.logs)

    @property
    def site_file(self) -> Path:
        """Where that lies; a job that is started again later reads the lines it was given."""
        return self.logs / f"site-{hashlib.sha256(self.script.encode()).hexdigest()[:12]}.sh"

    @property
    def variables(self) -> dict[str, str]:
        restarts = self.site.restarts if self.restarts is None else self.restarts
        return {
            "CONVOY_ROOT": str(CHECKOUT),
            "CONVOY_SITE": str(self.site_file),
            "CONVOY_MOST_RESTARTS": str(restarts),
        }

    def command(self, after: Sequence[str] = ()) -> list[str]:
        """`sbatch` with everything, to start when the jobs `after` have ended, however they did."""
        tasks = "%A_%a" if self.array else "%j"
        return [
            *("sbatch", "--parsable", "--export=ALL"),
            *sbatch_options(self.site, self.name),
            f"--output={self.logs}/%x-{tasks}.out",
            *([f"--array={self.array}"] if self.array else []),
            *([f"--dependency=afterany:{':'.join(after)}"] if after else []),
            str(ARRAY if self.array else TRAIN),
            *([str(self.lines)] if self.lines else []),
            *self.arguments,
        ]

    def shown(self, after: Sequence[str] = (), chain: int = 1) -> str:
        """All that `submit` does, as a script for a shell; each job of a chain after the one
        before."""
        variables = shlex.join(f"{name}={value}" for name, value in self.variables.items())
        first, later = (
            f"env {variables} \\\n    {shlex.join(self.command(jobs))}"
            for jobs in (after, [*after, "BEFORE"])
        )
        if chain > 1:
            later = re.sub(r"(--dependency=\S*)BEFORE", r'"\1${job%%;*}"', later)
            first = "\n".join(f"job=$({job})" for job in (first, *[later] * (chain - 1)))
        return (
            f"mkdir -p -- {shlex.quote(str(self.logs))}\n"
            f"cat >{shlex.quote(str(self.site_file))} <<'END_OF_SITE'\n{self.script}END_OF_SITE\n"
            f"{first}"
        )

    def tested(self, after: Sequence[str] = ()) -> str:
        """When and where Slurm would start it, in Slurm's words; nothing is submitted.

        Raises:
            InputError: If it refuses the job.
        """
        command = self.command(after)
        return self._sbatch([command[0], "--test-only", *command[1:]])

    def submit(self, after: Sequence[str] = ()) -> str:
        """Submit it and write down what it is; returns the job's id.

        Raises:
            InputError: If Slurm refuses it, or the folder of logs cannot be written to.
        """
        from trainer.checkpoints.atomic_files import cannot_write, write_output

        try:
            self.logs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.logs, error) from None
        write_output(self.site_file, self.script)
        job = self._sbatch(self.command(after)).partition(";")[0]
        known = {
            "job": job,
            "name": self.name,
            "site": self.site_name,
            "runs": [str(run) for run in self.runs],
            "arguments": self.arguments,
        }
        write_output(self.logs / f"{job}.json", json.dumps(known, indent=2) + "\n")
        return job

    def _sbatch(self, command: list[str]) -> str:
        try:
            done = subprocess.run(
                command,
                cwd=CHECKOUT,
                env=os.environ | self.variables,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise InputError(
                "sbatch", expected="it on the PATH", remedy="Submit from a node of the cluster."
            ) from None
        said = (done.stdout + done.stderr).strip()
        if done.returncode != 0:
            raise InputError(f"Slurm refuses the job: {said}", remedy=f"Site {self.site_name!r}.")
        return said if "--test-only" in command else done.stdout.strip()
