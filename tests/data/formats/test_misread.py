"""Files that are not what they seem: named as what they are, rather than read as something else."""

from __future__ import annotations

import gzip
import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import load_datasets
from data.facts import InputFacts
from data.formats.idx import read_idx
from data.formats.images import open_images
from data.formats.npy import map_npy
from data.formats.picture import opened
from data.formats.reading import Reading
from tests.support.data_sets import make_arrays, make_idx, make_tree
from tests.support.idx_files import write_idx

GREY = Reading(
    facts=InputFacts(input_shape=(1, 9, 7), num_classes=5, scale=255.0, dtype="uint8"), resize=True
)
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>404 Not Found</body></html>"
PAGES = {
    "plain": PAGE,
    "gzip": gzip.compress(PAGE, mtime=0),
    "xml": b"<?xml version='1.0'?><Error/>",
}


@pytest.mark.parametrize("content", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_idx(path),
        lambda path: map_npy(path),
        lambda path: open_images(path, GREY),
        lambda path: opened(path, "a.png").__enter__(),
    ],
)
def test_a_web_page_is_called_one(
    content: bytes, read: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputError, match=r"given 'a web page \(HTML\)'.*download it again"):
        read(tmp_path / "x")


def test_a_drawing_is_no_web_page(tmp_path: Path) -> None:
    (tmp_path / "x.svg").write_text('<?xml version="1.0"?>\n<svg xmlns="http://x/svg"/>')
    with pytest.raises(InputError, match="is not an image"):
        open_images(tmp_path / "x.svg", GREY)


@pytest.mark.parametrize("ending", ["avif", "jp2", "ico", "tga", "bmp", "tif"])
def test_pictures_that_begin_with_zeros_are_no_idx_files(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    try:
        Image.new("L", (32, 32), 77).save(path)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow does not write .{ending}")
    images = open_images(path, GREY)
    assert images.read(0, 1).shape == (1, 1, 9, 7)


def test_a_picture_in_colours_is_not_three_grey_ones(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 9, 7), np.uint8))
    with pytest.raises(InputError, match=r"given \(3, 9, 7\), expected \(N, 1, 9, 7\)"):
        open_images(tmp_path / "x.npy", GREY)
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 9, 7), np.uint8))
    assert len(open_images(tmp_path / "x.npy", GREY)) == 3


def test_arrays_whose_channels_seem_to_come_last_must_say_so(tmp_path: Path) -> None:
    given = {
        f"{split}_inputs": np.zeros((count, 8, 5, 3), np.uint8)
        for split, count in (("train", 53), ("test", 19))
    }
    root = make_arrays(tmp_path, **given)

    def shape(**kwargs: Any) -> tuple[int, ...]:
        config = DataConfig(dataset="npy", root=str(root), kwargs=kwargs)
        return load_datasets(config, seed=0).input_shape

    with pytest.raises(InputError, match=r"given \(53, 8, 5, 3\), .*channels_last true"):
        shape()
    assert shape(channels_last=True) == (3, 8, 5)
    assert shape(channels_last=False) == (8, 5, 3)


def test_names_of_classes_are_equal_however_their_letters_are_composed(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    for part, form in (("train", "NFC"), ("val", "NFD")):
        for name in ("cardinal", "parrot"):
            spelt = unicodedata.normalize(form, f"{name} é ü")  # type: ignore[arg-type]
            (root / part / name).rename(root / part / spelt)
    config = DataConfig(dataset="image_folder", root=str(root), kwargs={"size": 8})
    data = load_datasets(config, seed=0)
    assert data.classes == ("blue_jay", "cardinal é ü", "parrot é ü")
    assert len(data.test) == 11
    both = unicodedata.normalize("NFC", "parrot é ü")
    (root / "val" / both).mkdir()
    with pytest.raises(InputError, match="given 'two folders'"):
        load_datasets(config, seed=0)


@pytest.mark.parametrize(
    ("folder", "classes", "said"),
    [
        ("emnist", 5, True),
        ("x", 47, True),
        ("x", 62, True),
        ("x", 10, False),
    ],
)
def test_images_that_may_lie_on_their_sides_are_pointed_out(
    folder: str, classes: int, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_idx(tmp_path / folder, shape=(28, 28), num_classes=classes, num_train=900)
    for split in ("train", "test"):
        path = root / f"{split}-labels-idx1-ubyte"
        labels = read_idx(path).copy()
        labels[:classes] = np.arange(len(labels[:classes])) % classes
        write_idx(path, labels)
    with caplog.at_level(logging.WARNING, logger="convoy"):
        load_datasets(DataConfig(dataset="idx", root=str(root)), seed=0)
    assert ("--data.dataset emnist_balanced" in caplog.text) == said
