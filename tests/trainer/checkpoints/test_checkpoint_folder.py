"""The checkpoints of a run: published whole, the good ones found, the old ones pruned last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.support.checkpoints import FILES, contents, position, save, weights
from trainer.checkpoints import atomic_files
from trainer.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from trainer.checkpoints.checkpoint_folder import (
    Good,
    list_checkpoints,
    newest_good,
    restore_links,
    save_checkpoint,
    set_aside_newer,
)


def steps(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in list_checkpoints(folder)]


def damage(path: Path) -> None:
    with (path / FILES[0]).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")


def test_the_newest_good_one_is_found_and_the_rejected_ones_are_named(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, keep=9) for step in (1, 2, 3, 4)]
    assert newest_good(tmp_path) == (Good.at(paths[3]), [])
    damage(paths[3])
    (paths[2] / "trainer.pt").unlink()
    chosen, rejected = newest_good(tmp_path)
    assert chosen is not None
    assert chosen == (paths[1], verify_checkpoint(paths[1]))
    assert len(rejected) == 2
    assert str(paths[3]) in rejected[0]
    assert "SHA-256" in rejected[0]
    assert str(paths[2]) in rejected[1]
    assert "trainer.pt" in rejected[1]


def test_without_a_good_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest_good(tmp_path) == (None, [])
    assert newest_good(tmp_path / "absent") == (None, [])
    path = save(tmp_path, 1)
    damage(path)
    chosen, rejected = newest_good(tmp_path)
    assert chosen is None
    assert len(rejected) == 1


def test_only_checkpoints_are_listed_and_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100_000_000, 9, 99_999_999):
        save(tmp_path, step, keep=9)
    for name in (".writing-step_00000011", ".old-step_00000009", "step_11", "step_x", "rejected"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [9, 99_999_999, 100_000_000]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=2, is_best=step == 2)
        assert step in steps(tmp_path)
    assert steps(tmp_path) == [2, 5, 6]
    save(tmp_path, 7, keep=2, is_best=True)
    assert steps(tmp_path) == [6, 7]  # the old best is a checkpoint like any other
    save(tmp_path, 8, keep=2)
    save(tmp_path, 9, keep=2)
    assert steps(tmp_path) == [7, 8, 9]


def test_links_are_relative_and_lead_to_the_latest_and_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step, is_best in ((1, True), (2, False), (3, True), (4, False)):
        save(folder, step, is_best=is_best)
    assert os.readlink(folder / "latest") == "step_00000004"
    assert os.readlink(folder / "best") == "step_00000003"
    moved = folder.rename(tmp_path / "elsewhere")
    assert verify_checkpoint(moved / "latest")["step"] == 4
    assert verify_checkpoint(moved / "best")["step"] == 3


def test_the_best_is_nowhere_before_there_is_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert not (tmp_path / "best").is_symlink()


def test_the_same_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, value=1.0)
    path = save(tmp_path, 2, value=2.0)
    assert steps(tmp_path) == [1, 2]
    verify_checkpoint(path)
    assert load_checkpoint(path)[0]["layer.weight"][0, 0] == 2.0
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000001", "step_00000002", "latest"}


def test_what_a_killed_save_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    leftover = tmp_path / ".writing-step_00000002"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (leftover / "a folder").mkdir()
    assert newest_good(tmp_path) == (Good.at(first), [])
    verify_checkpoint(save(tmp_path, 2))
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000001", "step_00000002", "latest"}


def fail_on_rename(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Publishing the finished directory fails, however it is renamed."""
    monkeypatch.setattr(
        atomic_files, "exchange", lambda *_: False
    )  # names cannot be exchanged here
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def renamed(source: Any, target: Any, *, real: Any = real, **keys: Any) -> None:
            if Path(source).name.startswith(".writing"):
                raise error
            real(source, target, **keys)

        monkeypatch.setattr(os, name, renamed)


def fail_in(module: object, name: str) -> Callable[[pytest.MonkeyPatch, BaseException], None]:
    def install(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, name, fails)

    return install


CRASHES = {
    "weights": fail_in(safetensors.torch, "save_file"),
    "trainer": fail_in(torch, "save"),
    "manifest": fail_in(json, "dumps"),
    "flush": fail_in(os, "fsync"),
    "rename": fail_on_rename,
}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [2, 3], ids=["same step", "new step"])
@pytest.mark.parametrize("crash", list(CRASHES))
def test_a_save_that_fails_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    crash: str,
    step: int,
    error: BaseException,
) -> None:
    save(tmp_path, 1, is_best=True)
    save(tmp_path, 2)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        CRASHES[crash](patch, error)
        with pytest.raises(type(error)):
            save(tmp_path, step, value=5.0, keep=2, is_best=True)
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "step_00000001",
        "step_00000002",
        "latest",
        "best",
    }
    verify_checkpoint(save(tmp_path, step, value=5.0))


def test_nothing_is_pruned_before_the_new_one_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step, keep=2)
    counts = []
    real = shutil.rmtree

    def watched(path: Any, *arguments: Any, **keys: Any) -> None:
        if Path(path).name.startswith("step_"):
            counts.append(len(steps(tmp_path)))
        real(path, *arguments, **keys)

    monkeypatch.setattr(shutil, "rmtree", watched)
    save(tmp_path, 3, keep=2)
    assert counts == [3]


def test_newer_checkpoints_are_set_aside_and_the_links_lead_to_good_ones(tmp_path: Path) -> None:
    paths = [save(tmp_path, step, keep=9, is_best=step in (1, 3)) for step in (1, 2, 3, 4)]
    before = contents(paths[0])
    set_aside_newer(tmp_path, paths[1], best_step=1)
    assert steps(tmp_path) == [1, 2]
    assert contents(paths[0]) == before
    assert (tmp_path / "latest").resolve() == paths[1].resolve()
    assert len(list((tmp_path / "rejected").iterdir())) == 2
    assert (tmp_path / "best").resolve() == paths[0].resolve()
    set_aside_newer(tmp_path, paths[1], best_step=0)
    assert not (tmp_path / "best").is_symlink()


def test_the_same_step_may_be_set_aside_more_than_once(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    for _ in range(3):
        save(tmp_path, 2)
        set_aside_newer(tmp_path, first, best_step=0)
    assert steps(tmp_path) == [1]
    assert len(list((tmp_path / "rejected").iterdir())) == 3


def test_with_nothing_newer_nothing_is_set_aside(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    before = contents(tmp_path)
    set_aside_newer(tmp_path, path, best_step=0)
    assert contents(tmp_path) == before
    assert not (tmp_path / "rejected").exists()


def test_the_best_ones_are_kept_whatever_their_age(tmp_path: Path) -> None:
    """Law: the newest `keep` and the `keep_best` of the highest score; no score is no rank."""
    scores = [0.5, 0.9, None, 0.7, float("nan"), 0.8, 0.1, 0.2, 0.3]
    for step, score in enumerate(scores, start=1):
        save_checkpoint(
            tmp_path,
            weights(),
            {"progress": {}},
            position(step, score),
            keep=2,
            keep_best=3,
            is_best=score == 0.9,
        )
    assert steps(tmp_path) == [2, 4, 6, 8, 9]
    for path in list_checkpoints(tmp_path):
        verify_checkpoint(path)


def test_links_that_a_copy_has_followed_are_links_again(tmp_path: Path) -> None:
    """As `scp -r` and `cp -L` copy a run; nothing that was copied is deleted."""
    paths = [save(tmp_path, step) for step in (1, 2)]
    for name, path in (("latest", paths[1]), ("best", paths[0])):
        (tmp_path / name).unlink(missing_ok=True)
        shutil.copytree(path, tmp_path / name)
    shutil.rmtree(paths[0])
    notes = restore_links(tmp_path)
    assert len(notes) == 2
    assert f"{tmp_path / 'latest'} was a folder and no link" in notes[0]
    assert (tmp_path / "latest").readlink() == Path("step_00000002")
    assert (tmp_path / "best").readlink() == Path("step_00000001")
    assert [Good.at(path).path for path in paths] == paths
    assert len(list((tmp_path / "rejected").iterdir())) == 1
    assert restore_links(tmp_path) == []


def test_a_folder_in_place_of_a_link_that_is_no_checkpoint_makes_way(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest/note.txt").write_text("mine")
    restore_links(tmp_path)
    save(tmp_path, 1)
    assert (tmp_path / "latest").is_symlink()
    assert len(list(tmp_path.glob("rejected/*/note.txt"))) == 1
