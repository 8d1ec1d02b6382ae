"""Where torch.compile keeps what it makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.backward import persistent_cache
from trainer.backward.compile_cache import cache_folder
from trainer.backward.persistent_cache import VARIABLE, kind_of_machine, use_cache_beside


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


def test_it_lies_beside_the_runs_and_nobody_else_may_write_there(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        folder = use_cache_beside(str(tmp_path / "runs"))
    finally:
        os.umask(umask)
    assert folder == tmp_path / "runs" / f".compiled-{os.getuid()}" / kind_of_machine()
    assert cache_folder() == folder
    assert [part.stat().st_mode & 0o777 for part in (folder, folder.parent)] == [0o700] * 2
    assert use_cache_beside(str(tmp_path / "others")).is_relative_to(tmp_path / "others")


def test_the_user_s_own_choice_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine"))
    assert use_cache_beside(str(tmp_path / "runs")) == tmp_path / "mine"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["writable", "link", "file"])
def test_code_that_others_may_have_put_there_is_not_used(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / f".compiled-{os.getuid()}"
    if what == "writable":
        own.mkdir()
        own.chmod(0o775)
    elif what == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o777)
        (tmp_path / "elsewhere").chmod(0o777)
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.write_text("")
    used = use_cache_beside(str(tmp_path))
    assert not used.is_relative_to(tmp_path)
    assert str(own) in caplog.text


def test_another_processor_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: kernels are built for the processor they are built on."""
    here = kind_of_machine()
    assert kind_of_machine() == here
    monkeypatch.setattr(persistent_cache, "cpu_model", lambda: "another")
    assert kind_of_machine() != here
