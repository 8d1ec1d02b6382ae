"""A command in a fork of `fork_server` is the command that the interpreter would have started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.forked import Forked, can_be_forked
from tests.support.processes import environment, is_running, start, wait

PROGRAM = """
import json, os, random, signal, sys
from pathlib import Path
import neighbour
facts = {
    "name": __name__, "argv": sys.argv, "path": sys.path[:2], "cwd": os.getcwd(),
    "mine": os.environ.get("MINE"), "names": sorted(os.environ),
    "session": os.getsid(0) == os.getpid(),
    "ours": [name for name in sys.modules if name.startswith(("trainer", "configs", "tests"))],
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "input": sys.stdin.read(), "terminal": sys.stdout.isatty(), "neighbour": neighbour.__file__,
    "open": sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in range(3, 20)
                   if os.path.exists(f"/proc/self/fd/{fd}")),
}
print(json.dumps(facts))
print("warned", file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.process
def test_a_fork_is_what_a_start_is(tmp_path: Path) -> None:
    """Law: module or script, with its arguments, environment, folder, streams, session, status."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/neighbour.py").touch()
    env = environment({"MINE": "yes", "PYTHONPATH": str(tmp_path / "more")})
    python = [sys.executable, str(tmp_path / "program.py"), "a", "--b"]
    for command in (python, [sys.executable, "-m", "program", "a"]):
        forked = wait(Forked(command, tmp_path, env))
        started = wait(start(command, cwd=tmp_path, env=env))
        assert (forked.status, forked.stderr) == (started.status, started.stderr) == (7, "warned\n")
        assert json.loads(forked.stdout) == json.loads(started.stdout)


@pytest.mark.process
def test_a_fork_that_hangs_is_killed_and_one_that_dies_has_the_status_of_its_signal(
    tmp_path: Path,
) -> None:
    program = tmp_path / "program.py"
    program.write_text("import time; print('on', flush=True); time.sleep(600)")
    command = [sys.executable, str(program)]
    hanging = Forked(command, tmp_path, environment())
    with pytest.raises(AssertionError, match=r"no end after 2 s:\non"):
        wait(hanging, timeout=2)
    assert hanging.returncode == -9
    assert not is_running(hanging.pid)


def test_what_is_read_when_the_interpreter_starts_is_started(tmp_path: Path) -> None:
    assert can_be_forked({"WANDB_MODE": "offline", "PYTHONPATH": str(tmp_path)})
    for name in ("OMP_NUM_THREADS", "PYTHONIOENCODING", "LANG", "LC_ALL", "TORCH_LOGS"):
        assert not can_be_forked({name: "1"})
    (tmp_path / "sitecustomize.py").touch()
    assert not can_be_forked({"PYTHONPATH": str(tmp_path)})
