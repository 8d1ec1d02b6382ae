"""`launch/train.py` that kills itself at a call of its start or of a save.

CRASH_AT, such as `1 save 17`, says on which rank, in what, and at which call. What counts as a call
is what Python asks the system for: files, folders, links, locks, sockets, processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

VARIABLE = "CRASH_AT"
START, SAVE = "start", "save"
CALLS = ("open", "os.", "shutil.", "socket.", "fcntl.", "ctypes.dlsym", "subprocess.")
"""Names of audit events (https://docs.python.org/3/library/audit_events.html) begin so."""
CODE = (".py", ".pyc", ".so")
PYTHON = (sys.prefix, sys.base_prefix)
"""What is imported from there, is looked at thousands of times."""
RECORDS = ("delivered.", "evaluated.")
"""Files that the network of a crash test writes as it is called."""
KILLED = "killed.json"
"""Says in the working folder where the process was killed."""


class KilledAt:
    """An audit hook that counts calls, and kills this process at one of them.

    A start ends with the first step; one that has fewer calls is killed there. The calls of a save
    are counted from the first file of the first one on, those of all threads, over all saves.

    Args:
        where: In what: start or save.
        number: At which call.
    """

    def __init__(self, where: str, number: int) -> None:
        self.where, self.number, self.seen = where, number, 0
        self.saving = self.stepped = self.ends = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.ends or not event.startswith(CALLS):
            return
        what = str(arguments[0]) if arguments else ""
        if what.startswith(PYTHON) or (event == "open" and what.endswith(CODE)):
            return
        if what.startswith(RECORDS) and self.where == SAVE:
            return
        self.saving = self.saving or (event == "os.mkdir" and "/.writing-" in what)
        self.stepped = self.stepped or what.startswith(RECORDS)
        if self.where == SAVE and not self.saving:
            return
        self.seen += 1
        at_last = self.where == START and self.stepped
        if self.seen == self.number or at_last:
            self.ends = True  # writing it down is a call as well
            place = {"where": self.where, "call": self.seen, "event": event, "what": what}
            Path(KILLED).write_text(json.dumps(place) + "\n")
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    rank, where, number = os.environ[VARIABLE].split()
    if rank == os.environ.get("RANK", "0"):
        sys.addaudithook(KilledAt(where, int(number)))

    from launch.entry import run_command
    from launch.train import main

    run_command(main)
