"""Commands of the project as real processes: started, waited for, their output read."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.forked import Forked, can_be_forked

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This environment, one thread per rank, without variables a launcher or W&B may have left."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(
            ("WANDB_", "SLURM_", "TORCHELASTIC_", "ACCELERATE_", "TORCHINDUCTOR_")
        )
        and name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    return clean | {"OMP_NUM_THREADS": "1"} | (extra or {})


def start(command: list[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Any:
    """A command in a session of its own, so that a signal to it reaches nobody else."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def begin(command: list[str], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Any:
    """`start`, where it is not the start that matters: a fork that has imported torch already.

    The ranks of a torchrun are forks as well then, and not its children.
    """
    if can_be_forked(env or {}):
        return Forked(command, cwd, environment(env))
    return start(command, cwd=cwd, env=env)


def wait(process: Any, timeout: float = TIMEOUT_SECONDS) -> Finished:
    """The end of a started command; whatever it leaves behind is killed."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(
            f"no end after {timeout} s:\n{stdout[-3000:]}\n{stderr[-3000:]}"
        ) from None
    return Finished(process.returncode, stdout, stderr)


def run_code(code: str, *, env: dict[str, str] | None = None) -> Finished:
    """A program that is written in a test, to its end."""
    return wait(start([sys.executable, "-c", code], env=env))


def python_command(script: str | Path, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


@functools.cache
def _log_folder() -> str:
    """Where torchrun puts its error files: it deletes none."""
    folder = tempfile.TemporaryDirectory(prefix="torchrun-")
    atexit.register(folder.cleanup)
    return folder.name


def torchrun_command(ranks: int, script: str | Path, *arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        f"--log-dir={_log_folder()}",
        str(ROOT / script),
        *map(str, arguments),
    ]


def launch(
    script: str | Path,
    *arguments: object,
    ranks: int = 1,
    cwd: Path = ROOT,
    env: dict[str, str] | None = None,
) -> Finished:
    """Run a script of the project to its end: plain python for one rank, torchrun for more."""
    command = (
        python_command(script, *arguments)
        if ranks == 1
        else torchrun_command(ranks, script, *arguments)
    )
    return wait(begin(command, cwd=cwd, env=env))


def train(*arguments: object, ranks: int = 1, env: dict[str, str] | None = None) -> Finished:
    """`launch/train.py` to its end, which must be a good one."""
    finished = launch("launch/train.py", *arguments, ranks=ranks, env=env)
    assert finished.status == 0, finished.output[-4000:]
    return finished


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Until metrics.jsonl shows that step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get going")


def children(pid: int) -> list[int]:
    """Direct children of a process: the ranks of a torchrun."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended and was not waited for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def marked(finished: Finished, mark: str) -> list[Any]:
    """What the ranks printed as JSON after a mark."""
    assert finished.status == 0, finished.output[-4000:]
    lines = [line.partition(mark)[2] for line in finished.stdout.splitlines() if mark in line]
    return [json.loads(line) for line in lines]
