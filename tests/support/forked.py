"""The other side of `fork_server`: asks for a fork, and waits for it as for a process."""

from __future__ import annotations

import functools
import io
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
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


class Forked:
    """A command in a fork of the server: what `processes.wait` needs of a Popen."""

    def __init__(self, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.args = command
        self.returncode: int | None = None
        module = command[2] if command[1] == "-m" else ""
        argv = list(command[2:] if module else command[1:])
        request = {"module": module, "argv": argv, "cwd": str(cwd), "env": dict(env)}
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(_server(), [json.dumps(request).encode()], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self._streams: dict[int, bytearray] = {pipes[0][0]: bytearray(), pipes[1][0]: bytearray()}
        self._open = set(self._streams)
        self._status = open(pipes[2][0])  # noqa: SIM115 # closed by communicate
        self.pid = int(self._status.readline())

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Output and error until both are closed and the command has ended.

        Raises:
            subprocess.TimeoutExpired: If that takes longer; what has come is kept.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as ready:
            for fd in [*self._open, self._status.fileno()]:
                ready.register(fd, selectors.EVENT_READ)
            while ready.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
                for key, _ in ready.select(left):
                    if key.fd == self._status.fileno():
                        self.returncode = int(self._status.readline())
                        ready.unregister(key.fd)
                    elif chunk := os.read(key.fd, 1 << 16):
                        self._streams[key.fd] += chunk
                    else:
                        ready.unregister(key.fd)
                        self._open.discard(key.fd)
        for fd in self._streams:
            os.close(fd)
        self._status.close()
        output, errors = (
            io.TextIOWrapper(io.BytesIO(read)).read() for read in self._streams.values()
        )
        return output, errors


def fork(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Forked:
    """Start a command line of this interpreter in a fork, in a session of its own."""
    return Forked(command, cwd, env)
