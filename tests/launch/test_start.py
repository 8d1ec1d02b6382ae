"""The start of a run, up to its first step: a rank dies in it, a signal comes."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime

import pytest

from tests.support.processes import ROOT, begin, python_command, start, torchrun_command, wait

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
PROGRAM = "tests/programs/dying.py"
END_SECONDS = 15.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def srun(rank: int, port: int) -> dict[str, str]:
    """The variables of one of two ranks on a node, as srun sets them."""
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_TASKS_PER_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.mark.parametrize(
    "moment",
    ["before it meets the others", pytest.param("while it connects", marks=pytest.mark.slow)],
)
def test_a_rank_that_dies_in_its_start_ends_all_under_torchrun(
    small: Arguments, moment: str
) -> None:
    """Law: no later than 15 seconds after its death."""
    env = {"PYTHONPATH": str(ROOT), "DIES": moment}
    process = begin(torchrun_command(2, PROGRAM, *small("run")), env=env)
    finished = wait(process)
    assert finished.status != 0
    # torchrun says when it saw each rank end; the start before that takes as long as it takes.
    times = [datetime.fromisoformat(x) for x in re.findall(r"time +: (\S+)", finished.stderr)]
    assert len(times) == 2, finished.stderr
    assert (max(times) - min(times)).total_seconds() < END_SECONDS


def test_a_rank_that_dies_while_ranks_connect_ends_all_without_an_agent(
    small: Arguments,
) -> None:
    """srun with --kill-on-bad-exit=0 tells nobody: the ranks listen to each other."""
    port = free_port()
    env = {"PYTHONPATH": str(ROOT), "DIES": "while it connects"}
    command = python_command(PROGRAM, *small("run"))
    first, second = (start(command, env=env | srun(rank, port)) for rank in (0, 1))
    assert wait(second).status == -signal.SIGKILL
    died = time.monotonic()
    finished = wait(first)
    assert time.monotonic() - died < END_SECONDS
    assert finished.status == 1, finished.output
    assert "rank 0: another rank is gone or silent" in finished.stderr


def test_a_start_that_hangs_hears_a_stop_request(small: Arguments) -> None:
    env = {"PYTHONPATH": str(ROOT), "HANGS": "yes"}
    process = start(python_command(PROGRAM, *small("run")), env=env)
    assert process.stdout.readline() == "loading\n"
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    finished = wait(process)
    assert time.monotonic() - asked < END_SECONDS
    assert finished.status == 75, finished.output
    assert "stopped on request before the first step" in finished.stderr
    assert "Traceback" not in finished.output


def test_a_run_that_does_not_compile_starts_without_the_compiler(small: Arguments) -> None:
    """Law: what takes as long to import as torch is not imported before the first step, nor after
    it: through records, evaluations, checkpoints and their being loaded."""
    heavy = ("torch._dynamo", "torch._inductor", "sympy", "torch.distributed.fsdp", "matplotlib")
    program = (
        "import sys; from launch.train import main; assert main(sys.argv[1:]) == 0; "
        f"print('IMPORTED', [name for name in {heavy} if name in sys.modules])"
    )
    for steps in (5, 10):
        command = [sys.executable, "-c", program, *small("run", f"--train.max_steps={steps}")]
        finished = wait(start(command))
        assert finished.status == 0, finished.output
        assert "IMPORTED []" in finished.stdout, finished.stdout
    assert "step 6/10" in finished.stdout, "it went on"


@pytest.mark.parametrize("command", ["evaluate", "export --format=onnx", "predict"])
def test_a_run_that_is_not_there_is_refused_without_torch(command: str) -> None:
    """Law: a mistyped name is told at once, not after the seconds that torch takes to import."""
    name, *options = command.split()
    argv = ["runs/no_such", *options, *(["digit.png"] if name == "predict" else [])]
    program = (
        f"import sys; from launch.entry import run_command; from launch.{name} import main\n"
        f"try: run_command(lambda _: main({argv}))\n"
        "finally: print('IMPORTED', [name for name in ('torch',) if name in sys.modules])"
    )
    finished = wait(start([sys.executable, "-c", program]))
    assert finished.status == 2, finished.output
    assert "given 'runs/no_such', expected a run directory" in finished.stderr
    assert "IMPORTED []" in finished.stdout, finished.stdout
