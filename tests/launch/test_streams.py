"""What a terminal, a pipe or a disk does to a run: nothing that is not said, and never its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import (
    ROOT,
    begin,
    environment,
    is_running,
    python_command,
    start,
    wait,
    wait_for_step,
)
from tests.support.runs import comparable

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]


def status(run: Path) -> str:
    return str(json.loads((run / "summary.json").read_text())["status"])


@pytest.mark.parametrize("where", ["| head -n 1", "> /dev/full", ">&-"])
def test_a_broken_output_does_not_end_a_run(small: Arguments, tmp_path: Path, where: str) -> None:
    """Law: it is trained to its end, with every record."""
    command = " ".join(f"'{word}'" for word in python_command("launch/train.py", *small("run")))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {where}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert status(tmp_path / "run") == "completed"
    assert comparable(tmp_path / "run")[-1]["epoch"] == 2.0
    assert done.returncode == 0


def test_a_command_whose_result_cannot_be_written_fails_in_one_line() -> None:
    """Law: of every command, for `run_command` sees to it."""
    command = " ".join(python_command("launch/train.py", "--print_config"))
    done = subprocess.run(
        ["bash", "-c", f"{command} > /dev/full"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device)\n"


def test_a_terminal_without_the_letters_gets_others(small: Arguments, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "LANG": "C", "PYTHONUTF8": "0"}
    process = start(python_command("launch/train.py", *small("run-ü")), env=env)
    finished = wait(process)
    assert finished.status == 0, finished.output
    assert "run-?" in finished.stdout


@pytest.mark.parametrize("under_nohup", [False, True])
def test_a_closed_terminal_stops_a_run_in_order_unless_it_was_told_to_stay(
    small: Arguments, tmp_path: Path, under_nohup: bool
) -> None:
    command = python_command("launch/train.py", *small("run", "--train.epochs=4000"))
    if under_nohup:
        command = ["nohup", *command]
    process = start(command)
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGHUP)
    if under_nohup:
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    assert wait(process).status == 75
    assert status(tmp_path / "run") == "preempted"


COMMANDS = sorted(
    path.stem for path in ROOT.glob("launch/*.py") if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize(
    ("command", "module"),
    [*((name, "launch.entry") for name in [*COMMANDS, "convoy"]), ("doctor", "torch")],
)
def test_ctrl_c_while_packages_are_imported_shows_no_traceback(
    small: Arguments, command: str, module: str
) -> None:
    """Law: from the first line of every command on; before it Python itself is starting."""
    env = {"PYTHONPATH": str(ROOT / "tests/programs/interrupting"), "INTERRUPT_AT": module}
    arguments = small("run") if command == "doctor" else ["--help"]
    program = ["-m", "convoy"] if command == "convoy" else [f"launch/{command}.py"]
    finished = wait(start([sys.executable, *program, *arguments], env=env))
    assert finished.status in (130, -signal.SIGINT), finished.output
    assert len(finished.stderr.splitlines()) <= 1, finished.stderr


def test_a_data_worker_dies_with_its_rank_from_the_first_moment(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: whenever the rank is killed, soon nobody that it started is left, nor W&B's service."""
    options = ("--data.workers=2", "--train.epochs=4000")
    wandb = (*options, "--logging.wandb.mode=offline")
    for number, (delay, more) in enumerate(((0.0, options), (0.1, wandb))):
        name = f"run-{number}"
        process = start(python_command("launch/train.py", *small(name, *more)))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 120
        described = tmp_path / name / "environment.json"  # git was asked by then
        while not (described.exists() and (found := children.read_text().split())):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        time.sleep(delay)
        found = children.read_text().split()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while any(is_running(int(pid)) for pid in found):
            assert time.monotonic() < deadline, "a worker lives on"
            time.sleep(0.05)


def test_a_run_directory_that_is_deleted_is_missed_at_once(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: the run fails with a word at its next record, and makes no second one."""
    process = begin(python_command("launch/train.py", *small("run", "--train.epochs=4000")))
    wait_for_step(tmp_path / "run", 5, process)
    (tmp_path / "run").rename(tmp_path / "bin")
    shutil.rmtree(tmp_path / "bin", ignore_errors=True)
    finished = wait(process, timeout=60)
    assert finished.status == 1, finished.output
    assert "was deleted, moved or replaced" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "run").exists()
