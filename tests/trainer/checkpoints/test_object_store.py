"""Checkpoints in object storage: there when they are complete, and never in the way of a run."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.errors import InputError
from configs.load import load_config
from tests.support.checkpoints import save
from tests.support.odd_runs import run
from tests.support.runs import assert_same_bits
from tests.support.stored_parts import save_in_parts
from trainer.checkpoints import object_store
from trainer.checkpoints.checkpoint import verify_checkpoint
from trainer.checkpoints.object_store import ObjectStore, Uploader, fetch_newer, forget_newer


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty store, and no patience."""
    monkeypatch.setattr(object_store, "PAUSE_SECONDS", 0.01)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


class Failing(MemoryFileSystem):  # type: ignore[misc]
    """Loses contact for some operations, or is slow."""

    protocol = "failing"
    failures = 0
    gate: threading.Event | None = None

    def put_file(self, *arguments: Any, **options: Any) -> None:
        if Failing.gate is not None:
            assert Failing.gate.wait(20)
        if Failing.failures:
            Failing.failures -= 1
            raise OSError("connection reset")
        super().put_file(*arguments, **options)


fsspec.register_implementation("failing", Failing, clobber=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/model.json").write_text("{}")
    return tmp_path / "run/checkpoints"


def upload(store: ObjectStore, *paths: Path, keep: int = 2) -> None:
    uploader = Uploader(store, keep)
    for path in paths:
        uploader.submit(path)
        uploader.wait(20)
    uploader.close()


def test_a_checkpoint_comes_back_from_where_it_was_copied_to(folder: Path, tmp_path: Path) -> None:
    """In one file or in parts, with what using it takes; an older one is not fetched."""
    store = ObjectStore("memory://bucket/runs", "run")
    upload(store, save(folder, 1), save_in_parts(folder, 2))
    assert store.checkpoints() == ["step_00000001", "step_00000002"]
    other = tmp_path / "other/run/checkpoints"
    other.parent.mkdir(parents=True)
    fetch_newer(store, other)
    assert [path.name for path in other.iterdir()] == ["step_00000002"]
    assert verify_checkpoint(other / "step_00000002")["step"] == 2
    assert (other.parent / "model.json").read_text() == "{}"
    save(other, 3)
    store.put(save(folder, 3, value=9.0))
    fetch_newer(store, other)
    assert verify_checkpoint(other / "step_00000003") != verify_checkpoint(folder / "step_00000003")


@pytest.mark.parametrize("damage", ["changed", "cut", "no manifest"])
def test_what_does_not_verify_is_named_and_the_one_before_is_fetched(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    store = ObjectStore("memory://bucket/runs", "run")
    upload(store, save(folder, 1), save(folder, 2))
    newest = f"{store.root}/checkpoints/step_00000002"
    if damage == "changed":
        store.files.pipe_file(f"{newest}/trainer.pt", b"x")
    elif damage == "cut":
        store.files.rm_file(f"{newest}/trainer.pt")
    else:
        store.files.rm_file(f"{newest}/manifest.json")
    other = tmp_path / "other"
    fetch_newer(store, other)
    assert [path.name for path in other.iterdir()] == ["step_00000001"]
    assert ("step_00000002 in memory://bucket/runs/run rejected" in caplog.text) is (
        damage != "no manifest"
    )


def test_old_ones_are_deleted_there_but_those_that_are_on_disk(folder: Path) -> None:
    store = ObjectStore("memory://bucket/runs", "run")
    paths = [save(folder, step, keep=9) for step in range(1, 6)]
    store.files.pipe_file(f"{store.root}/checkpoints/step_00000000/half", b"x")
    upload(store, *paths[:4])
    for path in (paths[0], paths[2]):
        shutil.rmtree(path)
    upload(store, paths[4])
    assert [int(name[-1]) for name in store._folders()] == [2, 4, 5]


def test_contact_that_is_lost_for_a_while_is_tried_again(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Failing.failures = 2
    store = ObjectStore("failing://bucket", "run")
    upload(store, save(folder, 1))
    assert (store.checkpoints(), caplog.text) == (["step_00000001"], "")
    Failing.failures = 3
    upload(store, save(folder, 2))
    assert store.checkpoints() == ["step_00000001"]
    assert "step_00000002 was not uploaded to failing://bucket/run" in caplog.text
    assert "OSError: connection reset" in caplog.text
    upload(store, save(folder, 3))
    assert store.checkpoints() == ["step_00000001", "step_00000003"]


def test_a_slow_store_is_waited_for_by_nobody(folder: Path) -> None:
    """Law: of checkpoints that wait the newest goes; leaving waits for so long and no longer."""
    Failing.gate = threading.Event()
    try:
        store = ObjectStore("failing://bucket", "run")
        uploader, paths = Uploader(store, 9), [save(folder, step, keep=9) for step in (1, 2, 3)]
        begin = time.monotonic()
        for path in paths:
            uploader.submit(path)
        uploader.wait(0.1)
        assert time.monotonic() - begin < 5
        Failing.gate.set()
        uploader.close()
    finally:
        Failing.gate = None
    assert store.checkpoints()[-1] == "step_00000003"
    assert "step_00000002" not in store.checkpoints()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://bucket", "Protocol not known"),
        ("s3://bucket/runs", "Install that package"),
        ("not a url", "a URL such as s3://bucket/runs"),
    ],
)
def test_a_url_that_cannot_be_is_refused_in_one_message(url: str, words: str) -> None:
    if url.startswith("s3") and find_spec("s3fs"):
        pytest.skip("the package for s3 is here")

    def start() -> None:
        config = load_config([f"--checkpoint.upload={url}"], prog="", description="")
        object_store.find_store(config)

    with pytest.raises(InputError, match=words) as caught:
        start()
    assert "checkpoint.upload: given" in str(caught.value)


def test_a_store_out_of_reach_ends_only_a_start_that_has_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore("memory://bucket/runs", "run")

    def unreachable(*_: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(store.files, "exists", unreachable)
    for start in (
        lambda: fetch_newer(store, folder),
        lambda: forget_newer(store, -1, lenient=False),
    ):
        with pytest.raises(InputError, match="OSError: no route to host"):
            start()
    save(folder, 1)
    fetch_newer(store, folder)
    forget_newer(store, 1, lenient=True)
    assert caplog.text.count("cannot be reached (OSError: no route to host)") == 2


STEPS = ("--train.epochs=9", "--train.max_steps=12", "--checkpoint.every_steps=5")


def test_a_run_whose_disk_is_gone_goes_on_from_storage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: with the bits of a run left alone; and a run that starts afresh under its name is not
    continued as the old one."""
    caplog.set_level(logging.INFO, logger="convoy")
    store = f"--checkpoint.upload=file://{tmp_path / 'store'}"
    whole = run(tmp_path, "Base", *STEPS, "--name=whole")
    run(tmp_path, "Base", *STEPS, store, "--train.max_steps=7")
    shutil.rmtree(tmp_path / "run")
    again = run(tmp_path, "Base", *STEPS, store)
    assert "fetched step_00000007" in caplog.text
    assert_same_bits(whole, again)
    names = sorted(path.name for path in (tmp_path / "store/run/checkpoints").iterdir())
    assert names[-1] == "step_00000012"
    run(tmp_path, "Base", *STEPS, store, "--checkpoint.resume=never", "--train.max_steps=5")
    left = {path.name for path in (tmp_path / "store/run/checkpoints").iterdir()}
    assert {"step_00000005"} <= left <= {"step_00000003", "step_00000005"}
    assert len(list((tmp_path / "store/run/rejected").iterdir())) >= 2
