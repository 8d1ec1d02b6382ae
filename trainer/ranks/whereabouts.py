"""Where a rank is: the line of code that its training thread is at, and the step."""

from __future__ import annotations

import faulthandler
import os
import re
import socket
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from configs.own_modules import PREFIX
from data.loading.order import GlobalBatch

NOT_OURS = tuple(
    {str(Path(torch.__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
)
"""Folders of code that nobody of this run wrote."""
OURS = (f"{Path(__file__).resolve().parents[2]}/",) if PREFIX else ()
"""Where this project lies among them."""
NEIGHBOUR = str(Path(__file__).with_name("neighbour.py"))
"""In which one of two ranks waits for the other, as in a collective of torch's."""
MAY_WAIT = (
    NEIGHBOUR,
    *(
        os.sep.join(("", "torch", *parts))
        for parts in (("distributed",), ("autograd",), ("_tensor.py",))
    ),
)
"""Where a rank may wait for others: collectives, and backward passes."""

LINE = re.compile(r'File "(.+)", line (\d+) in (\S+)')


@dataclass(frozen=True, slots=True)
class Stuck:
    """A place in the code at which a thread has been found."""

    frame: int
    """Identity of its innermost frame."""
    instruction: int
    status: bytes
    """Of the collectives."""

    @classmethod
    def of(cls, frame: FrameType, status: bytes) -> Stuck:
        if frame.f_code.co_filename == NEIGHBOUR:  # it looks again and again, for one sum
            return cls(0, frame.f_locals.get("number", 0), status)
        return cls(id(frame), frame.f_lasti, status)


def frame_of(thread: int) -> FrameType:
    """The innermost frame of a thread of this process."""
    return sys._current_frames()[thread]


def innermost(error: BaseException) -> FrameType:
    """The frame in which an error was raised."""
    found = error.__traceback__
    assert found is not None
    while found.tb_next is not None:
        found = found.tb_next
    return found.tb_frame


def may_wait(frame: FrameType) -> bool:
    """Whether a thread that has long been there may be waiting for another rank."""
    return any(part in frame.f_code.co_filename for part in MAY_WAIT)


def is_strange(file: str) -> bool:
    """Whether a file is no part of the run's own code."""
    return (file.startswith((*NOT_OURS, "<")) and not file.startswith(OURS)) or file == NEIGHBOUR


def place(frame: FrameType) -> str:
    """The innermost line of the run's own code, as in `nets.py:63 in forward`."""
    own: FrameType | None = frame
    while own is not None and is_strange(own.f_code.co_filename):
        own = own.f_back
    own = own or frame
    return f"{own.f_code.co_filename}:{own.f_lineno} in {own.f_code.co_name}"


def step_of(frame: FrameType, taken: int) -> str:
    """Which step a thread is in, as in `step 31`, or after which, where it is between two.

    The step is found in the variables of the function that takes it, which costs a healthy run
    nothing.

    Args:
        frame: The innermost frame of the thread.
        taken: Steps of the run that it has taken for certain; several may be taken in a row.
    """
    at: FrameType | None = frame
    while at is not None:
        named = str(at.f_globals.get("__name__", ""))
        if named.startswith(f"{PREFIX}trainer.") and "global_batch" in at.f_code.co_varnames:
            found = at.f_locals.get("global_batch")
            if isinstance(found, GlobalBatch):
                return f"step {found.number + 1}"
        at = at.f_back
    return f"what follows step {taken}"


def process_name() -> str:
    """Of this process, as in `7123 on node4`."""
    return f"{os.getpid()} on {socket.gethostname()}"


def state_of(process: str) -> str:
    """What a process that does not answer is doing, where it can be seen from here."""
    pid, _, host = process.partition(" on ")
    if host != socket.gethostname() or not pid.isdecimal():
        return "on another node"
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "gone"
    letter = text.rpartition(")")[2].split()[0]
    if letter in "tT":
        return "stopped by a signal"
    if letter in "ZX":
        return "gone"
    return f"alive, but its Python does not run: py-spy dump --native --pid {pid}"


def write_stacks(path: Path, heading: str, ending: Iterable[object]) -> None:
    """The stacks of all threads of this process, the innermost line first."""
    with path.open("w") as file:
        file.write(f"{heading}\n\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n".join(map(str, ["", *ending, ""])))


@contextmanager
def fatal_stacks(path: Path) -> Iterator[None]:
    """Inside, a signal that kills this process, as an abort of gloo does, leaves its stacks.

    The file has to be there before; empty, it is removed. Whoever has asked Python for such stacks
    already gets them as before.
    """
    if faulthandler.is_enabled():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.disable()
    with suppress(OSError):  # of a folder that others still use, or that is gone
        if not path.stat().st_size:
            path.unlink()
        path.parent.rmdir()


def last_place(path: Path) -> str:
    """The innermost line of the run's own code in such stacks; empty if there are none."""
    with suppress(OSError):
        for thread in path.read_text().split("\n\n"):
            if "in take_steps" in thread:
                for file, line, name in LINE.findall(thread):
                    if not is_strange(file):
                        return f"{file}:{line} in {name}"
    return ""
