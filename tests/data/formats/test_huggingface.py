"""Data sets of the Hugging Face library: pictures and numbers from a disk, columns by name."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from tests.support.data_sets import CLASSES, JITTER, encoded, make_saved, make_tree, picture
from tests.support.loaded import refusal_of

pytestmark = pytest.mark.skipif(
    find_spec("datasets") is None, reason="datasets is missing: Hugging Face sets are NOT tested"
)


def load(root: Path | None, *, download: bool = False, **kwargs: Any) -> Datasets:
    config = DataConfig(
        dataset="huggingface",
        root=None if root is None else str(root),
        download=download,
        kwargs=kwargs,
    )
    return load_datasets(config, seed=0)


def save(folder: Path, **columns: Any) -> Path:
    """Splits train and test of the same rows."""
    import datasets

    rows = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_saved(tmp_path_factory.mktemp("saved") / "set")


def test_pictures_and_class_names_come_from_the_columns(saved: Path) -> None:
    data = load(saved, size=(20, 26))
    assert (len(data.train), len(data.test), data.classes) == (31, 11, CLASSES)
    assert (data.input_shape, data.num_classes, data.scale) == ((3, 20, 26), 3, 255.0)
    for index in (0, 7, 30):
        pixels, target = data.train[index]
        expected = picture(index % 3, index).transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels.numpy(), expected)
        assert (int(target), target.dtype) == (index % 3, torch.int64)
    torch.manual_seed(0)
    augmented = load(saved, size=(20, 26), augment=JITTER)
    assert not torch.equal(augmented.train[0][0], data.train[0][0])
    assert torch.equal(augmented.test[0][0], data.test[0][0])


@pytest.mark.parametrize(
    ("values", "dtype", "target", "width"),
    [
        (np.arange(12, dtype=np.float32).reshape(4, 3), torch.float32, [0, 1, 4, 1], 5),
        (np.arange(12).reshape(4, 3), torch.int64, [0.5, 1.0, 2.0, 3.0], 1),
        (np.ones((4, 2, 3), np.float32), torch.float32, [[0.0, 1.0]] * 4, 2),
    ],
)
def test_numbers_are_taken_as_they_are(
    values: Any, dtype: torch.dtype, target: Any, width: int, tmp_path: Path
) -> None:
    """Law: whole numbers become classes; other targets stay numbers, for other tasks."""
    folder = save(tmp_path / "set", x=list(values), y=target, z=["a"] * 4)
    data = load(folder, input="x", target="y")
    inputs, found = data.train[2]
    assert (data.input_shape, data.num_classes) == (values.shape[1:], width)
    np.testing.assert_array_equal(inputs.numpy(), values[2])
    assert inputs.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), np.array(target[2]))
    assert found.dtype == (torch.int64 if width == 5 else torch.float32)
    if values.dtype == np.float32 and values.ndim == 2:  # vectors: feature by feature
        assert data.mean == tuple(values.mean(0))
        assert data.std == pytest.approx(values.std(0))
    else:
        assert (data.mean, data.std) == ((0.0,), (1.0,))


def test_a_local_folder_of_files_is_read_through_the_library(tmp_path: Path) -> None:
    """`data.kwargs.path` is what load_dataset takes; a tree of pictures is one such thing."""
    tree = make_tree(tmp_path / "tree", num_train=6, num_test=3)
    (tree / "val").rename(tree / "validation")
    data = load(tmp_path / "cache", path=str(tree), size=8)
    assert (len(data.train), len(data.test), data.classes) == (6, 3, CLASSES)


def test_a_broken_picture_and_an_empty_cell_are_named(tmp_path: Path) -> None:
    import datasets

    cells = [
        {"bytes": encoded(picture(0, 0)), "path": None},
        {"bytes": b"no picture", "path": "x.png"},
        None,
    ]
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    rows = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0]}, features=features)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "set"))
    train = load(tmp_path / "set").train
    assert refusal_of(lambda: train[1]).startswith(
        "sample 1 of split train (x.png) is not an image"
    )
    assert refusal_of(lambda: train[2]).startswith("sample 2 of split train: given 'nothing'")


def test_what_is_missing_is_named_with_what_there_is(saved: Path, tmp_path: Path) -> None:
    message = refusal_of(lambda: load(saved, input="img"))
    assert "given 'image, label', expected 'img'" in message
    assert "Did you mean 'image'?" in message
    assert "given 'train, test', expected dev with" in refusal_of(lambda: load(saved, test="dev"))
    assert "data.root: expected" in refusal_of(lambda: load(None))
    assert "data.root: given" in refusal_of(lambda: load(tmp_path / "no"))
    assert "cannot be loaded" in refusal_of(lambda: load(tmp_path))
    assert "data.download is false" in refusal_of(lambda: load(None, path="owner/name"))
    assert "Did you mean 'target'?" in refusal_of(lambda: load(saved, tagret="label"))


def test_text_and_negative_classes_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", x=["a", "b"], y=[0, 1], z=[0, -1])
    message = refusal_of(lambda: load(folder, input="x", target="y"))
    assert "expected a picture or numbers" in message
    assert "given -1" in refusal_of(lambda: load(folder, input="y", target="z"))


def test_one_split_alone_is_refused_unless_it_is_to_be_cut(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"x": [1], "y": [0]}).save_to_disk(str(tmp_path / "set"))
    assert "--data.test 0.1" in refusal_of(lambda: load(tmp_path / "set"))


VECTORS = [[float(index), 1.0] for index in range(8)]


def save_splits(folder: Path, train: list[Any], test: list[Any], feature: Any = None) -> Path:
    import datasets

    made = {}
    for split, labels in (("train", train), ("test", test)):
        rows = datasets.Dataset.from_dict({"image": VECTORS, "label": labels})
        made[split] = rows.cast_column("label", feature) if feature else rows
    datasets.DatasetDict(**made).save_to_disk(str(folder))
    return folder


def test_labels_of_text_become_classes_in_alphabetical_order(tmp_path: Path) -> None:
    """Law: the same number in both splits, whichever of them a text occurs in."""
    data = load(save_splits(tmp_path / "set", ["dog", "ant"] * 4, ["cat", "dog"] * 4))
    assert data.classes == ("ant", "cat", "dog")
    assert data.num_classes == 3
    assert [int(data.train[index][1]) for index in range(3)] == [2, 0, 2]
    assert [int(data.test[index][1]) for index in range(3)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("train", "test", "classes", "said"),
    [
        ([1, None, 1, 1] * 2, [0] * 8, None, r"row 1 of split train: given 'nothing'"),
        ([None, 1, 1, 1] * 2, [0] * 8, None, r"row 0 of split train: given 'nothing'"),
        (["a", "b"] * 4, ["a", "b", None, "a"] * 2, None, r"row 2 of split test: given 'nothing'"),
        ([0, 1] * 4, [0, 1, 1, -1] * 2, 2, r"row 3 of split test: given -1, expected 0 to 1"),
        ([0, 1] * 4, [0, -1] * 4, None, r"row 1 of split test: given -1, expected 0 or more"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_their_row(
    tmp_path: Path, train: list[Any], test: list[Any], classes: int | None, said: str
) -> None:
    import datasets

    feature = datasets.ClassLabel(num_classes=classes) if classes else None
    folder = save_splits(tmp_path / "set", train, test, feature)
    assert re.search(said, refusal_of(lambda: load(folder)))


def test_a_column_of_single_numbers_is_no_input(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"image": [1.0, 2.0], "label": [0, 1]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "set"))
    found = refusal_of(lambda: load(tmp_path / "set"))
    assert "column 'image': given 'single numbers'" in found
