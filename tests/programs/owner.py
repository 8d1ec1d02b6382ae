"""Starts a process that dies with its owner, tells its id, and waits to be killed.

As `program` it starts another program, and may be killed before that one runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection

from data.parent_death import ask_at_parent_death, die_with


def owned(owner: int, answer: Connection) -> None:
    if len(sys.argv) > 2:
        print(os.getpid(), flush=True)  # the owner may not come to it
        os.kill(owner, 9)  # before it is watched
        time.sleep(0.2)
    die_with(owner)
    answer.send(os.getpid())
    time.sleep(60)


def start_program(owner: int, moment: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: None)  # as commands handle it

    def before_it_runs() -> None:
        print(os.getpid(), flush=True)
        if moment == "early":
            os.kill(owner, 9)
            time.sleep(0.2)
        ask_at_parent_death(owner)
        if moment == "late":
            os.kill(owner, 9)
            time.sleep(0.2)

    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                     preexec_fn=before_it_runs)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "program":
        start_program(os.getpid(), sys.argv[2])
        time.sleep(60)
    multiprocessing.set_start_method(sys.argv[1])
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=owned, args=(os.getpid(), theirs))
    process.start()
    print(process.pid, flush=True)
    if mine.poll(50):
        print("owns", mine.recv(), flush=True)
    time.sleep(60)
