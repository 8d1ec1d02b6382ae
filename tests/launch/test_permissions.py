"""What a run leaves, nobody else may write, whatever the umask was; where it may not write itself,
it says so."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from launch import evaluate, export, predict, train
from tests.support.checkpoints import contents
from tests.support.privileges import permissions_count
from tests.support.processes import python_command, start, wait


@pytest.mark.process
def test_no_file_of_a_run_is_writable_by_all(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    command = python_command("launch/train.py", *small("run", "--train.max_steps=2"))
    finished = wait(start(["sh", "-c", f"umask 000; exec {shlex.join(command)}"]))
    assert finished.status == 0, finished.output
    paths = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {".run.lock", "trainer.pt", "config.yaml"} <= {path.name for path in paths}
    assert [path for path in paths if path.stat().st_mode & 0o002] == []


def test_a_place_that_cannot_be_written_is_one_message(trained_run: Path, tmp_path: Path) -> None:
    """Law: /proc takes no files, from nobody."""
    images = tmp_path / "x-idx3-ubyte"
    images.write_bytes(
        b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (1, 9, 7)) + bytes(63)
    )
    for call in (
        lambda: evaluate.main([str(trained_run), "--output=/proc"]),
        lambda: export.main([str(trained_run), "--format=safetensors", "--output=/proc/x"]),
        lambda: predict.main([str(trained_run), str(images), "--output=/proc/x.csv"]),
    ):
        with pytest.raises(InputError, match=r"cannot write|folder this user may write"):
            call()


def test_a_read_only_run_can_be_used_and_not_changed(
    trained_run: Path, small: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Law: for an ordinary user; what cannot be written is one message, and nothing is left."""
    folder = tmp_path / "shared"
    run = Path(shutil.copytree(trained_run, folder / "run", symlinks=True))
    before = contents(folder)
    paths = [path for path in (*folder.rglob("*"), folder) if not path.is_symlink()]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    with permissions_count():
        assert evaluate.main([str(run), f"--output={tmp_path / 'mine'}"]) == 0
        more = ["--train.max_steps=50", "--parallel.device=cpu", f"--output_dir={folder}"]
        for call in (
            lambda: evaluate.main([str(run)]),
            lambda: export.main([str(run), "--format=safetensors"]),
            lambda: train.main([*small("run"), *more]),
            lambda: train.main([*small("new"), *more]),
        ):
            with pytest.raises(InputError, match=r"cannot write .*\(Permission denied\)"):
                call()
    assert contents(folder) == before
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)
