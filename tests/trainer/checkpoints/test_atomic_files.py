"""A file is published whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import InputError
from trainer.checkpoints.atomic_files import check_output, replacing


def test_the_content_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_output("--output", tmp_path / "file")
    for path, expected in (
        (tmp_path, "a file, not a folder"),
        (tmp_path / "none" / "file", "a folder that exists"),
    ):
        with pytest.raises(InputError, match=expected):
            check_output("--output", path)
