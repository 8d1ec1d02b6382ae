"""Starts a process that dies with its owner, tells its id, and waits to be killed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection

from data.parent_death import die_with


def owned(owner: int, answer: Connection) -> None:
    if len(sys.argv) > 2:
        os.kill(owner, 9)  # before it is watched
        time.sleep(0.2)
    die_with(owner)
    answer.send(os.getpid())
    time.sleep(60)


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=owned, args=(os.getpid(), theirs))
    process.start()
    print(process.pid, flush=True)
    if mine.poll(50):
        print("owns", mine.recv(), flush=True)
    time.sleep(60)
