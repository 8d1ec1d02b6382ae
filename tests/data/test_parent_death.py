"""A process that dies with its owner, however Python starts processes."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.processes import ROOT, is_running, python_command, start

pytestmark = pytest.mark.process
DEATH_SECONDS = 2.0


def ends(pid: int) -> bool:
    deadline = time.monotonic() + DEATH_SECONDS
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_lives_and_dies_with_its_owner(method: str) -> None:
    command = python_command("tests/programs/owner.py", method)
    owner = start(command, env={"PYTHONPATH": str(ROOT)})
    pid = int(owner.stdout.readline())
    assert owner.stdout.readline() == f"owns {pid}\n"
    assert is_running(pid)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert ends(pid)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_it_ends_if_its_owner_died_before_it_asked(method: str) -> None:
    """The kernel tells nobody of a death that was before."""
    command = python_command("tests/programs/owner.py", method, "early")
    owner = start(command, env={"PYTHONPATH": str(ROOT)})
    pid = int(owner.stdout.readline())
    assert owner.wait(60) == -signal.SIGKILL
    assert ends(pid)


@pytest.mark.parametrize("moment", ["early", "late"])
def test_a_program_ends_if_its_owner_dies_before_it_runs(moment: str) -> None:
    """Law: before the kernel was asked to tell it, and after that too, while a handler of the
    owner's would still take the signal."""
    command = python_command("tests/programs/owner.py", "program", moment)
    owner = start(command, env={"PYTHONPATH": str(ROOT)})
    pid = int(owner.stdout.readline())
    assert owner.wait(60) == -signal.SIGKILL
    assert ends(pid)
