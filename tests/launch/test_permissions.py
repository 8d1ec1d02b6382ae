"""What a run leaves, nobody else may write, whatever the umask was."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import InputError
from launch import evaluate, export, predict
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
