"""A lock is a plain file of its own: nothing that lies in its place is followed or emptied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.errors import InputError
from data.lock_file import open_lock
from launch.train import main
from trainer.checkpoints.atomic_files import write_atomically


def test_a_lock_is_neither_followed_nor_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("content")
    link = tmp_path / "link"
    link.symlink_to(precious)
    with pytest.raises(OSError, match="is a symbolic link: remove it"):
        open_lock(link)
    open_lock(precious).close()
    assert precious.read_text() == "content"


def test_a_pipe_is_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no plain file"):
        open_lock(tmp_path / "pipe")


def test_a_run_does_not_follow_the_link_in_place_of_its_lock(
    tmp_path: Path, idx_folder: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("content")
    (tmp_path / ".run.lock").symlink_to(precious)
    with pytest.raises(InputError, match="is a symbolic link: remove it"):
        main(
            [
                *("--config=idx", f"--data.root={idx_folder}"),
                *(f"--output_dir={tmp_path}", "--name=run"),
            ]
        )
    assert precious.read_text() == "content"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "precious"]


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Law: neither the file nor the one it is written as first leads to another file."""
    precious = tmp_path / "precious"
    precious.write_text("content")
    for name in ("evaluation.json", ".evaluation.json.new"):
        (tmp_path / name).symlink_to(precious)
    write_atomically(tmp_path / "evaluation.json", "{}")
    assert precious.read_text() == "content"
    assert not (tmp_path / "evaluation.json").is_symlink()
    assert (tmp_path / "evaluation.json").read_text() == "{}"
