"""Commands of the project in processes that have imported torch already.

Most of a command's time in a test is the import of torch. A server imports it once; a command is a
fork of it, which then does what the interpreter does with a script: its own session, arguments,
environment, streams, working directory and exit status. The server has one thread and has computed
nothing, so a fork of it is as good as new. What has to be read before torch is loaded (variables of
the interpreter and of OpenMP), and what tests the start itself, is started for real.
"""

from __future__ import annotations

import io
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

import numpy as np
import torch
from forked import ForkedRank  # this file's folder comes first on the path

FDS = 4
"""Of a request: standard output, standard error, where pid and status are written to; and for
torchrun the connection by which it may ask for its ranks."""
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
                    return become(json.loads(data), *fds)
                report(fds[2], pid)
                for fd in (*fds[:2], *fds[3:]):
                    os.close(fd)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, fds[2]
                ready.register(pidfd, selectors.EVENT_READ)


def report(fd: int, number: int) -> None:
    try:
        os.write(fd, b"%d\n" % number)
    except BrokenPipeError:  # nobody waits for it any more
        return


def become(
    request: dict[str, Any], stdout: int, stderr: int, status: int, server: int | None = None
) -> dict[str, Any]:
    """What the interpreter does before it runs a script; returns the request, and the server."""
    os.close(status)
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, number in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    if request["unbuffered"]:
        raw = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = io.TextIOWrapper(raw, write_through=True)
    else:
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv, sys.orig_argv = request["argv"], [sys.executable, *request["argv"]]
    random.seed()
    np.random.seed()
    torch.default_generator.seed()
    tempfile.tempdir = None  # known of the server's environment
    return request | {"server": server}


def run(request: dict[str, Any]) -> None:
    """The script, or the module, as `__main__`."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [str(Path(folder).resolve()) for folder in folders if folder]
    if request["server"] is not None:
        fork_ranks(socket.socket(fileno=request["server"]))
    if module := request["module"]:
        sys.path[0] = request["cwd"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


def fork_ranks(server: socket.socket) -> None:
    """Let this torchrun have forks as ranks, where it would have started interpreters."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    def popen(handler: Any, words: list[str], env: dict[str, str]) -> ForkedRank:
        streams = [handler._stdout or sys.stdout, handler._stderr or sys.stderr]
        return ForkedRank(server, words, Path.cwd(), env, [stream.fileno() for stream in streams])

    SubprocessHandler._popen = popen  # type: ignore[method-assign, assignment]


def main() -> None:
    import jsonargparse  # noqa: F401
    import rich.console  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch._dynamo  # an optimizer imports it
    import torch.distributed.fsdp
    import torch.distributed.run  # noqa: F401
    import yaml  # noqa: F401

    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork would lose threads: {threads}"
    connection = socket.socket(fileno=int(sys.argv[1]))
    request = serve(connection)
    if request is not None:
        run(request)


if __name__ == "__main__":
    main()
