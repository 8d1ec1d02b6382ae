"""Which pictures of a tree are read, each once, and what is said of the rest."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.formats.picture_tree import HIDDEN, LINKED, find_pictures, readable_endings

COUNT, CLASSES = 4, ("ant", "bee", "cat")


def picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (shade, 40, 200)).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in CLASSES:
            for index in range(COUNT):
                picture(tmp_path / part / name / f"{index}.png", 10 * index)
    return tmp_path


def load(root: Path) -> Datasets:
    config = DataConfig(dataset="image_folder", root=str(root), kwargs={"size": 6})
    return load_datasets(config, seed=0)


@pytest.mark.parametrize(
    "target", ["train/cat", "train", ".", "train/cat/inner"], ids=["itself", "above", "root", "in"]
)
def test_a_link_inside_a_class_that_leads_back_adds_nothing(tree: Path, target: str) -> None:
    """Law: whatever it leads to that is read already, or lies above; no folder is read twice."""
    picture(tree / "train/cat/inner/x.png")
    os.symlink(tree / target, tree / "train/cat/link")
    found, left_out = find_pictures(tree / "train", "cat", readable_endings())
    assert found == [b"cat/0.png", b"cat/1.png", b"cat/2.png", b"cat/3.png", b"cat/inner/x.png"]
    assert left_out == {LINKED: 1}
    assert len(load(tree).train) == COUNT * len(CLASSES) + 1


def test_folders_elsewhere_are_read_through_links_and_once(tree: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    picture(elsewhere / "deep/y.png")
    for name in ("first", "second"):
        os.symlink(elsewhere, tree / "train/bee" / name)
    os.symlink(elsewhere, elsewhere / "deep/around")
    found, left_out = find_pictures(tree / "train", "bee", readable_endings())
    assert found[COUNT:] == [b"bee/first/deep/y.png"]
    assert left_out == {LINKED: 2}
    os.symlink(tree / "train/ant", tree / "train/dog")  # a class may be a link itself
    assert len(find_pictures(tree / "train", "dog", readable_endings())[0]) == COUNT


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir"])
def test_folders_of_programs_are_neither_classes_nor_samples(tree: Path, name: str) -> None:
    picture(tree / "train" / name / "a.png")
    picture(tree / "val" / name / "a.png")
    picture(tree / "train/ant" / name / "a.png")
    picture(tree / "train/ant/.hidden.png")
    data = load(tree)
    assert data.classes == CLASSES
    assert len(data.train) == COUNT * len(CLASSES)
    assert find_pictures(tree / "train", "ant", readable_endings())[1] == {HIDDEN: 2}


def test_what_pillow_opens_is_read_and_the_rest_is_counted_aloud(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endings = ("jfif", "jpe", "gif", "tif", "bmp", "tga", "PNG")
    for ending in endings:
        kind = {"jfif": "jpeg", "jpe": "jpeg", "tif": "tiff", "PNG": "png"}.get(ending, ending)
        Image.new("RGB", (9, 7), (1, 2, 3)).save(tree / "train/bee" / f"b.{ending}", format=kind)
    for name in ("notes.txt", "more.txt", "README"):
        (tree / "train/bee" / name).write_text("no picture")
    with caplog.at_level(logging.WARNING, logger="convoy"):
        data = load(tree)
    assert len(data.train) == COUNT * len(CLASSES) + len(endings)
    assert all(data.train[index][0].shape == (3, 6, 6) for index in range(len(data.train)))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{tree / 'train'}: left out 3 of 22 files: .txt 2, no ending 1"


def test_a_tree_without_anything_else_says_nothing(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(tree)
    assert not caplog.records


def test_the_first_frame_of_a_phones_picture_is_the_picture(tree: Path) -> None:
    """Multi-picture files, as phones and drones write them, are called .jpg."""
    frames = [Image.new("RGB", (12, 10), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    path = tree / "train/cat/phone.jpg"
    frames[0].save(path, format="MPO", save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    data = load(tree)
    pixels, label = data.train[len(data.train) - 1]
    assert label == CLASSES.index("cat")
    assert pixels[0].float().mean() > 240
    assert pixels[2].float().mean() < 15
