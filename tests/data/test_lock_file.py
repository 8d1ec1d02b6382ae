"""A lock is a plain file of its own: nothing that lies in its place is followed or emptied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.errors import InputError
from data.lock_file import lock_of, open_lock
from launch.sweeping import trial_process
from launch.sweeping.trials import Trial
from launch.train import main
from tests.support.sample_records import facts
from trainer.checkpoints.atomic_files import write_atomically
from trainer.records.notes import NotesSink
from trainer.records.sinks import Note
from trainer.records.wandb_sink import _saved_id


def test_a_lock_is_neither_followed_nor_emptied(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("content")
    link = tmp_path / "link"
    link.symlink_to(precious)
    with pytest.raises(OSError, match="is a symbolic link: remove it"):
        open_lock(link)
    open_lock(precious).close()
    assert precious.read_text() == "content"


def test_a_folder_has_one_lock_whatever_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "a").symlink_to("disk/there")
    (tmp_path / "b").symlink_to("a")
    locks = []
    for _ in range(2):  # before the folder is there, and after
        locks += [lock_of(tmp_path / name) for name in ("a", "b", "disk/there")]
        (tmp_path / "disk/there").mkdir(exist_ok=True)
    assert len({os.fstat(lock.fileno()).st_ino for lock in locks}) == 1
    for lock in locks:
        lock.close()


def test_the_lock_lies_in_a_folder_that_nothing_may_be_written_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk whose administrator has made a folder for each user."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    lock_of(tmp_path / "link").close()
    assert (tmp_path / "mine/.lock").is_file()


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


def test_neither_are_notes_an_identity_or_the_log_of_a_trial(tmp_path: Path) -> None:
    """Law: nor does a disk that refuses a note end a run."""
    precious = tmp_path / "precious"
    precious.write_text("content")
    (tmp_path / "notes/a").mkdir(parents=True)
    for name in ("wandb.json", "notes/a/step_00000003.txt", "trial_1.log"):
        (tmp_path / name).symlink_to(precious)
    sink = NotesSink()
    sink.start(facts(tmp_path))
    sink.note(Note(step=3, name="a", text="hello"))
    assert (tmp_path / "notes/a/step_00000003.txt").read_text() == "hello"
    identifier = _saved_id(tmp_path)
    assert identifier in (tmp_path / "wandb.json").read_text()
    with pytest.raises(InputError, match=r"cannot write .*trial_1\.log"):
        trial_process.start(Trial("trial_1", {}), [], tmp_path, ranks=1)
    assert precious.read_text() == "content"
    (tmp_path / "notes/b").write_text("no folder")
    sink.note(Note(step=3, name="b", text="hello"))
