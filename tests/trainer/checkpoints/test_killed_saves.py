"""A process killed at any moment of a save leaves a checkpoint that can be continued from."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkpoints import save
from tests.support.stored_parts import save_in_parts
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


Save = Callable[..., None]


def save_and_be_killed(saved: Save, folder: Path, step: int, moment: int) -> bool:
    """Save in a process that kills itself at its `moment`-th use of the file system.

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
        saved(folder, step, value=2.0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    ("saved", "exchanges"), [(one_file, True), (one_file, False), (three_parts, True)]
)
@pytest.mark.parametrize("step", [2, 3], ids=["the step that is there", "the next step"])
def test_a_kill_at_any_moment_of_a_save_loses_nothing(
    tmp_path: Path, step: int, saved: Save, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the newest checkpoint is the one before or the new one, whole; nothing is left over.

    The second of two saves of one step, as after an evaluation that was interrupted, replaces the
    first; with `keep` 2 there is an older one as well, which must not be what is found.
    """
    if exchanges:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        if not atomic_files.exchange(tmp_path / "a", tmp_path / "b"):
            pytest.skip("this file system cannot exchange two names")
    else:
        monkeypatch.setattr(atomic_files, "exchange", lambda *_: False)
    moment, killed, found_values = 0, True, set()
    while killed:
        moment += 1
        folder = tmp_path / str(moment)
        saved(folder, 1)
        saved(folder, 2, value=1.0)
        killed = save_and_be_killed(saved, folder, step, moment)
        if exchanges:
            assert (folder / "step_00000002").is_dir(), "there at every moment"
        recover_directories(folder)
        found, rejected = newest_good(folder)
        assert found is not None
        assert rejected == []
        value = float(load_checkpoint(found)[0]["layer.weight"][0, 0])
        assert (step_of(found), value) in ((2, 1.0), (step, 2.0))
        assert not [path for path in folder.iterdir() if path.name.startswith((".old", ".writ"))]
        found_values.add(value)
    assert moment > 20, "many moments were tried"
    assert found_values == {1.0, 2.0}
