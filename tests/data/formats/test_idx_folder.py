"""Any four IDX files in a folder are a data set: what is found, computed and refused."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.datasets import ArrayDataset
from data.formats.idx import read_idx
from data.normalize import Normalize
from tests.support.data_sets import make_idx
from tests.support.loaded import arrays, load, refusal, write_four


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(9, 7), (1, 1), (28, 3), (7, 6, 3), (5, 5, 1)])
def test_an_idx_folder_gives_its_images_channels_first_and_its_labels(
    shape: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    """Law: (N, H, W) becomes (N, 1, H, W), (N, H, W, C) becomes (N, C, H, W), nothing is lost."""
    make_idx(tmp_path, num_train=13, num_test=11, shape=shape, num_classes=4, suffix=suffix)
    data = load("idx", tmp_path)
    found = arrays(data)
    channels = shape[2] if len(shape) == 3 else 1
    assert data.input_shape == (channels, *shape[:2])
    for split, count in (("train", 13), ("test", 11)):
        images = read_idx(tmp_path / f"{split}-images-idx3-ubyte{suffix}")
        expected = images[:, None] if len(shape) == 2 else images.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(found[f"{split}_images"], expected)
        labels = read_idx(tmp_path / f"{split}-labels-idx1-ubyte{suffix}")
        np.testing.assert_array_equal(found[f"{split}_labels"], labels)
        assert len(labels) == count
    assert found["train_images"].dtype == np.uint8
    assert found["train_labels"].dtype == np.int64


def test_the_number_of_classes_is_the_highest_label_of_either_set_plus_one(
    tmp_path: Path,
) -> None:
    assert load("idx", write_four(tmp_path / "a")).num_classes == 3
    labels = np.array([0, 9, 0, 0, 0], "i4")
    assert load("idx", write_four(tmp_path / "b", test_labels=labels)).num_classes == 10


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "f4", "f8"])
def test_mean_and_deviation_equal_numpys_per_channel(
    dtype: str, channels: int | None, tmp_path: Path
) -> None:
    """Law: moments are of the training images only, of pixels / 255 where they are bytes."""
    shape = (7, 6, 5) if channels is None else (7, 6, 5, channels)
    values = np.random.default_rng(0).uniform(0, 120, shape)
    values = values + (0 if channels is None else 3 * np.arange(channels))
    images, test = values.astype(dtype), np.full((5, *shape[1:]), 100).astype(dtype)
    data = load("idx", write_four(tmp_path, train_images=images, test_images=test))
    assert data.scale == (255.0 if dtype == "u1" else 1.0)
    floats = images.astype(np.float64) / data.scale
    floats = floats[..., None] if channels is None else floats
    np.testing.assert_allclose(data.mean, floats.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, floats.std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1 / 3])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_constant_images_are_centred_and_not_divided_by_nothing(
    dtype: str, value: float, tmp_path: Path
) -> None:
    images = {
        "train_images": np.full((500, 6, 5), value).astype(dtype),
        "test_images": np.full((5, 6, 5), value).astype(dtype),
    }
    labels = np.zeros(500, "u1")
    data = load("idx", write_four(tmp_path, train_labels=labels, **images))
    assert data.std == (1.0,)
    assert isinstance(data.train, ArrayDataset)
    assert Normalize(data, torch.device("cpu"))(data.train.inputs).abs().max() < 1e-6


@pytest.mark.parametrize(
    "names",
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images", "t10k-labels"),
        ("images", "labels", "images_test", "labels_test"),
        ("train_x.idx", "train_y.idx", "val_x.idx", "val_y.idx"),
        ("A-Images", "A-Labels", "TEST-Images", "TEST-Labels"),
        ("train-latest-x", "train-latest-y", "eval-latest-x", "eval-latest-y"),
    ],
)
def test_roles_are_told_by_dimensions_and_by_words_in_the_names(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    write_four(tmp_path / "from")
    (tmp_path / "to").mkdir()
    roles = ("train-images", "train-labels", "test-images", "test-labels")
    for role, name in zip(roles, names, strict=True):
        shutil.copy(tmp_path / "from" / role, tmp_path / "to" / name)
    expected, found = (arrays(load("idx", tmp_path / name)) for name in ("from", "to"))
    for role, array in expected.items():
        np.testing.assert_array_equal(found[role], array)


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    write_four(tmp_path)
    (tmp_path / "README.md").write_text("# data")
    (tmp_path / ".empty").touch()
    (tmp_path / "archive.gz").write_bytes(gzip.compress(b"something else"))
    (tmp_path / "train-images.gz").write_bytes(
        gzip.compress((tmp_path / "train-images").read_bytes())
    )
    (tmp_path / "folder").mkdir()
    assert len(load("idx", tmp_path).train) == 7


def test_the_files_may_lie_in_a_subfolder_named_idx(tmp_path: Path) -> None:
    write_four(tmp_path / "idx")
    assert len(load("idx", tmp_path).train) == 7
    assert len(load("idx", tmp_path / "idx").train) == 7


WRONG_FILES: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "fewer labels than images": ({"train_labels": np.zeros(6, "u1")}, "train-labels"),
    "more labels than images": ({"test_labels": np.zeros(6, "u1")}, "test-labels"),
    "negative labels": ({"train_labels": np.array([0, -1, 0, 0, 0, 0, 0], "i1")}, "given -1"),
    "float labels": ({"test_labels": np.zeros(5, "f4")}, "whole numbers"),
    "labels in two dimensions": ({"train_labels": np.zeros((7, 1), "u1")}, "train-labels"),
    "images in one dimension": ({"train_images": np.zeros(7, "u1")}, "train-images"),
    "images of no dimension": ({"train_images": np.array(7, "u1")}, "train-images"),
    "another shape in testing": ({"test_images": np.zeros((5, 6, 4), "u1")}, "(1, 6, 5)"),
    "another type in testing": ({"test_images": np.zeros((5, 6, 5), "f4")}, "float32"),
    "no training samples": (
        {"train_images": np.zeros((0, 6, 5), "u1"), "train_labels": np.zeros(0, "u1")},
        "at least one",
    ),
    "no test samples": (
        {"test_images": np.zeros((0, 6, 5), "u1"), "test_labels": np.zeros(0, "u1")},
        "at least one",
    ),
    "images without pixels": (
        {"train_images": np.zeros((7, 0, 5), "u1"), "test_images": np.zeros((5, 0, 5), "u1")},
        "empty dimensions",
    ),
}


@pytest.mark.parametrize(("files", "said"), WRONG_FILES.values(), ids=list(WRONG_FILES))
def test_files_that_do_not_belong_together_are_refused(
    files: dict[str, NDArray[Any]], said: str, tmp_path: Path
) -> None:
    message = refusal("idx", write_four(tmp_path, **files))
    assert said in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("role", ["train-images", "train-labels", "test-images", "test-labels"])
def test_a_missing_role_and_two_candidates_are_refused_with_what_was_found(
    role: str, tmp_path: Path
) -> None:
    write_four(tmp_path)
    twin = role.replace("-", "-other-")
    shutil.copy(tmp_path / role, tmp_path / twin)
    assert f"{[role, twin]}" in refusal("idx", tmp_path)
    (tmp_path / role).unlink()
    (tmp_path / twin).unlink()
    message = refusal("idx", tmp_path)
    assert f"'{role.replace('-', '_')}': []" in message
    assert "one file for each role" in message


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"\0\0\x08\x01\0\0\0\x07" + bytes(7))[:-4],
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 50,
        b"\x1f\x8b\x08\x00",
        b"\0\0\x08\x01\0\0",
        b"\0\0\x08",
        b"",
    ],
    ids=["cut gzip", "corrupt gzip", "gzip header", "cut header", "three bytes", "empty"],
)
def test_a_broken_file_among_the_four_is_refused(content: bytes, tmp_path: Path) -> None:
    write_four(tmp_path)
    (tmp_path / "train-labels").write_bytes(content)
    assert str(tmp_path) in refusal("idx", tmp_path)


def test_an_idx_root_is_needed_and_must_exist(tmp_path: Path) -> None:
    assert refusal("idx").startswith("data.root: expected")
    assert refusal("idx", tmp_path / "nothing").startswith("data.root: given")
    (tmp_path / "file").touch()
    assert refusal("idx", tmp_path / "file").startswith("data.root: given")
