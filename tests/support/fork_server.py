"""Commands of the project in processes that have imported torch already.

Most of a command's time in a test is the import of torch. A server imports it once; a command is a
fork of it, which then does what the interpreter does with a script: its own session, arguments,
environment, streams, working directory and exit status. The server has one thread and has computed
nothing, so a fork of it is as good as new. What has to be read before torch is loaded (variables of
the interpreter and of OpenMP), and what tests the start itself, is started for real.
"""

from __future__ import annotations

import json
import os
import random
import runpy
import selectors
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

FDS = 3
"""Of a request: standard output, standard error, and where pid and status are written to."""
MAX_REQUEST_BYTES = 1 << 17


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for every request until the other side is gone; in a fork, return its request."""
    running: dict[int, tuple[int, int]] = {}
    with selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in ready.select():
                if key.fileobj is not connection:  # the pidfd of a fork that has ended
                    ready.unregister(key.fileobj)
                    pid, status = running.pop(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    report(status, code)
                    os.close(status)
                    continue
                data, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, FDS)
                if not data:
                    return None
                if (pid := os.fork()) == 0:
                    connection.close()
                    for other_fd, (_, other) in running.items():
                        os.close(other_fd)
                        os.close(other)
                    become(json.loads(data), *fds)
                    return json.loads(data)
                report(fds[2], pid)
                for fd in fds[:2]:
                    os.close(fd)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, fds[2]
                ready.register(pidfd, selectors.EVENT_READ)


def report(fd: int, number: int) -> None:
    try:
        os.write(fd, b"%d\n" % number)
    except BrokenPipeError:  # nobody waits for it any more
        return


def become(request: dict[str, Any], stdout: int, stderr: int, status: int) -> None:
    """What the interpreter does before it runs a script."""
    os.close(status)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv, sys.orig_argv = request["argv"], [sys.executable, *request["argv"]]
    random.seed()
    tempfile.tempdir = None  # known of the server's environment


def run(request: dict[str, Any]) -> None:
    """The script, or the module, as `__main__`."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [str(Path(folder).resolve()) for folder in folders if folder]
    if module := request["module"]:
        sys.path[0] = request["cwd"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    import jsonargparse  # noqa: F401
    import numpy  # noqa: F401
    import rich.console  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch.distributed  # noqa: F401
    import yaml  # noqa: F401

    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork would lose threads: {threads}"
    connection = socket.socket(fileno=int(sys.argv[1]))
    request = serve(connection)
    if request is not None:
        run(request)


if __name__ == "__main__":
    main()
