"""A process killed at any moment of a save leaves a checkpoint that can be continued from."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.checkpoints import save
from tests.support.stored_parts import save_in_parts
from tests.support.traced import killed_at
from trainer.checkpoints import atomic_files
from trainer.checkpoints.atomic_files import recover_directories
from trainer.checkpoints.checkpoint import load_checkpoint, step_of
from trainer.checkpoints.checkpoint_folder import newest_good

pytestmark = pytest.mark.process

TOUCHES_FILES = ("open", "os.", "shutil.", "ctypes.dlsym")


def one_file(folder: Path, step: int, *, value: float = 0.0) -> None:
    save(folder, step, value=value, keep=2)


def three_parts(folder: Path, step: int, *, value: float = 0.0) -> None:
    save_in_parts(folder, step, value=value, keep=2, threads=1)


def killed_at_use(call: Callable[[], object], moment: int) -> bool:
    """Call in a process that kills itself at its `moment`-th use of the file system.

    Returns:
        Whether it was killed, instead of coming to its end before.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, _: object) -> None:
            nonlocal seen
            if event.startswith(TOUCHES_FILES):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        call()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def traceable() -> bool:
    try:
        return killed_at(os.getpid, 1)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("saved", "exchanges"), [(one_file, True), (one_file, False), (three_parts, True)]
)
@pytest.mark.parametrize("step", [2, 3], ids=["the step that is there", "the next step"])
@pytest.mark.parametrize("kill", [killed_at_use, pytest.param(killed_at, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_of_a_save_loses_nothing(
    tmp_path: Path,
    kill: Callable[[Callable[[], object], int], bool],
    step: int,
    saved: Callable[..., None],
    exchanges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: the newest checkpoint is the one before or the new one, whole; nothing is left over.

    The second of two saves of one step, as after an evaluation that was interrupted, replaces the
    first; with `keep` 2 there is an older one as well, which must not be what is found. Killed at
    every system call, where the kernel may be asked for that, or at those that Python tells of.
    """
    if kill is killed_at and not (sys.platform == "linux" and traceable()):
        pytest.skip("processes may not be traced here")
    if exchanges:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        if not atomic_files.exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this file system cannot exchange two names")
    else:
        monkeypatch.setattr(atomic_files, "exchange", lambda *_: False)
    before, folder = tmp_path / "before", tmp_path / "folder"
    saved(before, 1)
    saved(before, 2, value=1.0)
    moment, killed, found_values = 0, True, set()
    while killed:
        moment += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder, symlinks=True)
        killed = kill(partial(saved, folder, step, value=2.0), moment)
        if exchanges:
            assert (folder / "step_00000002").is_dir(), "there at every moment"
        recover_directories(folder)
        found, rejected = newest_good(folder)
        assert found is not None
        assert rejected == []
        value = float(load_checkpoint(found.path)[0]["layer.weight"][0, 0])
        assert (step_of(found.path), value) in ((2, 1.0), (step, 2.0))
        assert not [path for path in folder.iterdir() if path.name.startswith((".old", ".writ"))]
        found_values.add(value)
    assert moment > (60 if kill is killed_at else 20), "many moments were tried"
    assert found_values == {1.0, 2.0}
