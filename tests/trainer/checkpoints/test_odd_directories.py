"""Run directories that are links, that vanish, whose names or disks are full."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from configs.schema import RunConfig
from launch.using.named_run import find_checkpoint
from tests.support.checkpoints import contents, save
from tests.support.odd_runs import run
from tests.support.run_directories import earlier_run
from tests.support.runs import comparable, latest_weights, records, train_here
from trainer.checkpoints import checkpoint, run_directory
from trainer.checkpoints.atomic_files import follow
from trainer.checkpoints.checkpoint import load_checkpoint, wait_until_visible
from trainer.checkpoints.initial_weights import read_weights
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.ranks.failures import RunFailed


def test_a_link_keeps_leading_to_the_disk_that_was_chosen(
    config: RunConfig, tmp_path: Path
) -> None:
    """Law: what it leads to is moved aside there, and the link is not touched."""
    disk = tmp_path / "disk"
    (disk / "there").mkdir(parents=True)
    (tmp_path / "run").symlink_to(disk / "there")
    earlier_run(config, "completed")
    old = contents(disk / "there")
    directory = RunDirectory(config)
    (note,) = directory.open(config, Resume(None, 0, []))
    assert contents(disk / "there.1") == old
    assert str(disk / "there.1") in note
    assert (tmp_path / "run").readlink() == disk / "there"
    assert (disk / "there" / "config.yaml").is_file()
    assert sorted(path.name for path in disk.iterdir()) == [".there.lock", "there", "there.1"]


def test_two_links_to_one_directory_are_one_run(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: whatever leads to it, and even if the directory was moved aside in between."""
    monkeypatch.setattr(run_directory, "LOCK_SECONDS", 0.0)
    (tmp_path / "disk/there").mkdir(parents=True)
    for name in ("run", "other"):
        (tmp_path / name).symlink_to(tmp_path / "disk/there")
    (tmp_path / "folder").symlink_to(tmp_path)
    earlier_run(config, "completed")
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    for folder, name in (("", "run"), ("", "other"), ("folder", "run"), ("disk", "there")):
        same = replace(config, output_dir=str(tmp_path / folder), name=name)
        with pytest.raises(InputError, match="another process is training in"):
            RunDirectory(same).claim()
    another = RunDirectory(replace(config, name="another"))
    another.claim()


@pytest.mark.parametrize("target", ["nowhere", "run"])
def test_a_link_that_leads_nowhere_is_refused(
    config: RunConfig, tmp_path: Path, target: str
) -> None:
    (tmp_path / "run").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"given 'a link to .*, expected a folder that is there"):
        RunDirectory(config).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("length", [250, 300])
def test_a_name_that_is_too_long_is_blamed_on_the_name(tmp_path: Path, length: int) -> None:
    config = RunConfig(output_dir=str(tmp_path), name="n" * length)
    with pytest.raises(InputError, match="Choose a shorter --name") as caught:
        RunDirectory(config).claim()
    assert "--output_dir" not in str(caught.value)


def test_the_longest_name_is_taken(tmp_path: Path) -> None:
    config = RunConfig(output_dir=str(tmp_path), name="n" * 249)
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    directory.check_there()


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_directory_that_is_not_there_any_more_fails_the_run(
    config: RunConfig, tmp_path: Path, what: str
) -> None:
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    directory.check_there()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if what == "replaced":
        (tmp_path / "run").mkdir()
    with pytest.raises(RunFailed, match="was deleted, moved or replaced"):
        directory.check_there()


def test_a_full_disk_does_not_leave_a_finished_run_running(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: the last summary takes the room of the one before; others keep it as it was."""
    directory = RunDirectory(config)
    directory.open(config, Resume(None, 0, []))
    directory.write_summary({"status": "running", "note": "x" * 100})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_directory, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        directory.write_summary({"status": "running"})
    assert directory.status() == "running"
    directory.write_summary({"status": "completed"})
    assert directory.status() == "completed"


def test_a_checkpoint_that_this_machine_sees_late_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, where another machine has written it; not for ever."""
    hidden, path = tmp_path / "hidden", tmp_path / "seen" / "step_00000001"
    save(hidden, 1, value=7.0)
    shows = threading.Timer(0.3, hidden.rename, [path.parent])
    shows.start()
    wait_until_visible(path)
    assert load_checkpoint(path)[0]["layer.weight"][0, 0] == 7.0
    shows.join()
    monkeypatch.setattr(checkpoint, "VISIBLE_SECONDS", 0.2)
    wait_until_visible(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path / "nowhere")


def test_where_there_are_no_symbolic_links_files_name_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: as on FAT, and on much that is mounted from object storage; whoever reads the one reads
    the other, and it is said once."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refused)
    folder = run(tmp_path, "Base", "--train.epochs=2", "--train.ema_decay=0.9") / "checkpoints"
    latest, best = folder / "latest", folder / "best"
    assert latest.read_text() == "step_00000006\n"
    assert {path.name for path in folder.iterdir()} == {
        *("latest", "best", "step_00000003", "step_00000006")
    }
    assert caplog.text.count("can have no links") == 1
    assert "Traceback" not in caplog.text
    for given, name in ((latest, None), (folder.parent, "latest")):
        assert find_checkpoint(given, name)[1] == folder / "step_00000006"
    assert find_checkpoint(folder.parent, None)[1] == follow(best) != best
    ours, theirs = (read_weights(str(given)) for given in (folder.parent, best))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = run(tmp_path, "Base", f"--checkpoint.resume={latest}", "--train.ema_decay=0.9")
    assert not (tmp_path / "run.1").exists(), "it was continued"
    assert follow(again / "checkpoints/latest").name == "step_00000009"
    latest.write_bytes(b"\xff/../..\0")
    assert follow(latest) == latest


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: nor does it end a run, or its continuation; what a run took is measured otherwise."""
    options = ["--train.max_steps=30", "--checkpoint.every_steps=7", "--logging.every_steps=5"]
    whole = train_here(tmp_path / "whole", idx_folder, *options)
    jumps = itertools.cycle((0.0, 4e9, -3e8, 1.7e9, 86_400.0))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + next(jumps))
    train_here(tmp_path / "jumping", idx_folder, "--train.max_steps=13", *options[1:])
    jumping = train_here(tmp_path / "jumping", idx_folder, *options)
    assert comparable(jumping, 15) == comparable(whole, 15)
    assert all((latest_weights(whole)[k] == v).all() for k, v in latest_weights(jumping).items())
    assert all(0 < record["elapsed_seconds"] < 1000 for record in records(jumping))
