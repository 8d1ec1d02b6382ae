"""The other side of `fork_server`: asks for forks, which are waited for as processes are."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
TORCHRUN = "torch.distributed.run"
READ_AT_START = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH", "PYTHON", "L")
"""Variables that only an interpreter that starts takes note of: its own, those of libraries, of the
language and of the linker."""


def can_be_forked(extra: Mapping[str, str]) -> bool:
    """Whether a process that is there already can take these variables on.

    PYTHONPATH is, unless something there wants to run at the start.
    """
    folders = [Path(folder) for folder in extra.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if any((folder / "sitecustomize.py").exists() for folder in folders):
        return False
    return not any(name.startswith(READ_AT_START) for name in extra if name != "PYTHONPATH")


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which ends with it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            [sys.executable, str(SERVER), str(its.fileno())],
            pass_fds=[its.fileno()],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    return mine


class ForkedRank:
    """A fork with streams that are there: what torchrun needs of a Popen."""

    def __init__(
        self,
        server: socket.socket,
        command: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        streams: Sequence[int],
    ) -> None:
        self.args = command
        self.returncode: int | None = None
        read, write = os.pipe()
        ask(server, command, cwd, env, [*streams, write])
        os.close(write)
        self._status = open(read)  # noqa: SIM115 # closed when it has ended
        self.pid = int(self._status.readline())

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; the negative of a signal that ended it.

        Raises:
            subprocess.TimeoutExpired: If it has not ended by then.
        """
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forked(ForkedRank):
    """A command in a fork of the server, in a session of its own, with its output kept."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        pipes = [os.pipe() for _ in range(2)]
        super().__init__(_server(), command, cwd, env, [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self._streams: dict[int, bytearray] = {read: bytearray() for read, _ in pipes}
        self._open = set(self._streams)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Output and error until both are closed and the command has ended.

        Raises:
            subprocess.TimeoutExpired: If that takes longer; what has come is kept.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._open:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            for fd in select.select([*self._open], [], [], left)[0]:
                if chunk := os.read(fd, 1 << 16):
                    self._streams[fd] += chunk
                else:
                    self._open.discard(fd)
                    os.close(fd)
        self.wait(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        output, errors = (
            io.TextIOWrapper(io.BytesIO(read)).read() for read in self._streams.values()
        )
        return output, errors


def ask(
    server: socket.socket,
    command: Sequence[str],
    cwd: Path,
    env: Mapping[str, str],
    fds: Sequence[int],
) -> None:
    """For a fork with a command line of this interpreter; torchrun may ask for its ranks, too.

    Args:
        fds: Its output and error, and where its pid and exit status are written to.
    """
    _, *words = command
    unbuffered = words[0] == "-u"
    words = words[unbuffered:]
    module = words[1] if words[0] == "-m" else ""
    request = {
        "module": module,
        "argv": words[1:] if module else words,
        "cwd": str(cwd),
        "env": dict(env),
        "unbuffered": unbuffered,
    }
    more = [server.fileno()] if module == TORCHRUN else []
    socket.send_fds(server, [json.dumps(request).encode()], [*fds, *more])
