"""Ends what is left of a virtual cluster once the tests are over, or were killed themselves.

    python reaper.py SLURM_CONF

Waits for the end of its standard input, which comes when its parent is gone for whatever reason,
then kills every process that has this SLURM_CONF in its environment (daemons, job steps, ranks) and
removes the folder of that file.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path


def members(conf: str) -> list[int]:
    """Processes that belong to the cluster of this configuration file."""
    mark = f"SLURM_CONF={conf}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # it has ended, or it is another user's
                continue
    return found


def kill_all(conf: str) -> None:
    """Kill until two looks in a row find nobody: a daemon may have been about to start one more."""
    quiet = 0
    while quiet < 2:
        pids = members(conf)
        quiet = 0 if pids else quiet + 1
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.read()
    kill_all(sys.argv[1])
    shutil.rmtree(Path(sys.argv[1]).parent)
