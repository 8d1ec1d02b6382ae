"""A test that starts a process is marked so, or it fails."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

STARTS: dict[str, Callable[[], object]] = {
    "a command": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "a shell": lambda: os.system("true"),
    "a fork": lambda: os.fork() or os._exit(0),
    "a forked worker": multiprocessing.get_context("fork").Process(target=print).start,
    "a spawned worker": multiprocessing.get_context("spawn").Process(target=print).start,
}


@pytest.mark.parametrize("start", STARTS.values(), ids=list(STARTS))
def test_a_test_that_is_not_marked_cannot_start_a_process(start: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="not marked `process`"):
        start()


@pytest.mark.process
def test_a_test_that_is_marked_can_start_processes() -> None:
    for call in list(STARTS.values())[:2]:
        call()


def test_what_a_run_asks_about_itself_is_allowed() -> None:
    subprocess.run(["git", "--version"], check=True)
