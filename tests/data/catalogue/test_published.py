"""CIFAR and EMNIST: records and transposed letters as they are published, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import DataConfig
from data.catalogue.catalog import CATALOG
from data.catalogue.catalog_emnist import SPLITS
from data.catalogue.cifar import read_cifar
from data.datasets import ArrayDataset, Datasets, load_datasets
from tests.support.data_sets import make_cifar, picture
from tests.support.idx_files import write_idx
from tests.support.loaded import refusal_of


def load(name: str, root: Path, **options: Any) -> Datasets:
    config = DataConfig(
        dataset=name, root=str(root), **{"verify": False, "download": False} | options
    )
    return load_datasets(config, seed=0)


def arrays(dataset: object) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(dataset, ArrayDataset)
    return dataset.inputs, dataset.targets


# -- CIFAR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "label_bytes", "files"), [("cifar10", 1, 5), ("cifar100", 2, 1)])
@pytest.mark.parametrize("inner", [False, True])
def test_records_become_images_and_labels_in_the_order_of_the_files(
    name: str, label_bytes: int, files: int, inner: bool, tmp_path: Path
) -> None:
    """Law: planes, rows and columns stay; the last label byte counts; batches follow each other."""
    facts = CATALOG[name]
    assert facts.archive is not None
    make_cifar(tmp_path / facts.archive.folder if inner else tmp_path, label_bytes)
    data = load(name, tmp_path)
    inputs, targets = arrays(data.train)
    assert inputs.shape == (24 * files, 3, 32, 32)
    assert targets.tolist() == [number % 3 for number in range(24)] * files
    for position, number in ((0, 0), (files - 1, 5)):
        expected = picture(number % 3, number + 1000 * position, 32, 32).transpose(2, 0, 1)
        np.testing.assert_array_equal(inputs[24 * position + number].numpy(), expected)
    assert (data.num_classes, data.mean, data.std) == (len(facts.classes), facts.mean, facts.std)
    assert data.facts().dtype == "uint8"


def test_the_fine_label_of_cifar_100_is_the_second_byte(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    path.write_bytes(bytes([7, 42]) + bytes(3072))
    _, labels = read_cifar(path, label_bytes=2, num_classes=100)
    assert labels.tolist() == [42]


def test_truncated_records_wrong_labels_and_other_files_are_refused(tmp_path: Path) -> None:
    make_cifar(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    message = refusal_of(lambda: load("cifar10", tmp_path))
    assert f"{path} is truncated" in message
    assert "a multiple of 3073" in message
    path.write_bytes(bytes([10]) + whole[1:])
    assert f"{path}: label: given 10, expected below 10" in refusal_of(
        lambda: load("cifar10", tmp_path)
    )
    path.write_bytes(whole)
    message = refusal_of(lambda: load("cifar10", tmp_path, verify=True))
    assert CATALOG["cifar10"].files["train_1"].sha256 is not None
    assert CATALOG["cifar10"].files["train_1"].sha256 in message
    path.unlink()
    message = refusal_of(lambda: load("cifar10", tmp_path))
    assert "cifar-10-binary.tar.gz, or its folder cifar-10-batches-bin" in message


# -- EMNIST --------------------------------------------------------------------------------------


def make_emnist(folder: Path, split: str, labels: dict[str, list[int]]) -> dict[str, Any]:
    """Files of a split as they are published: compressed, and images with x before y."""
    facts = CATALOG[f"emnist_{split}"]
    folder.mkdir(parents=True, exist_ok=True)
    upright = {}
    for part, given in labels.items():
        images = np.random.default_rng(len(given)).integers(0, 256, (len(given), 28, 28))
        upright[part] = images.astype(np.uint8)
        for role, array in (
            (f"{part}_images", upright[part].transpose(0, 2, 1)),
            (f"{part}_labels", np.array(given, np.uint8)),
        ):
            write_idx(folder / f"{facts.files[role].name}.gz", array)
    return upright


@pytest.mark.parametrize("split", list(SPLITS))
def test_images_are_turned_upright_and_labels_begin_with_0(split: str, tmp_path: Path) -> None:
    """Law: every split reads as MNIST does; mean and deviation are those of its pixels."""
    first = 1 if split == "letters" else 0
    highest = first + len(SPLITS[split][0]) - 1
    labels = {"train": [first, highest, first + 2, first], "test": [highest, first]}
    upright = make_emnist(tmp_path / "emnist", split, labels)
    data = load(f"emnist_{split}", tmp_path)
    for part, dataset in (("train", data.train), ("test", data.test)):
        inputs, targets = arrays(dataset)
        np.testing.assert_array_equal(inputs[:, 0].numpy(), upright[part])
        assert targets.tolist() == [label - first for label in labels[part]]
    assert data.num_classes == len(data.classes) == len(SPLITS[split][0])
    np.testing.assert_allclose(data.mean, upright["train"].mean() / 255, rtol=1e-12)
    np.testing.assert_allclose(data.std, upright["train"].std() / 255, rtol=1e-12)


def test_letters_labelled_from_0_and_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    make_emnist(tmp_path, "letters", {"train": [0, 1], "test": [1]})
    assert "given -1" in refusal_of(lambda: load("emnist_letters", tmp_path))
    make_emnist(tmp_path, "digits", {"train": [0, 10], "test": [1]})
    assert "labels up to 10" in refusal_of(lambda: load("emnist_digits", tmp_path))


def test_a_damaged_compressed_file_is_refused_by_its_checksum(tmp_path: Path) -> None:
    """No digest of the single files is known: gzip's own CRC stands in."""
    make_emnist(tmp_path, "mnist", {"train": [0, 1], "test": [1]})
    path = tmp_path / "emnist-mnist-train-labels-idx1-ubyte.gz"
    plain = gzip.decompress(path.read_bytes())
    content = bytearray(gzip.compress(plain, 0))
    content[-9] ^= 1  # the last label: stored, not compressed
    path.write_bytes(bytes(content))
    assert str(path) in refusal_of(lambda: load("emnist_mnist", tmp_path, verify=True))


@pytest.mark.parametrize("name", ["cifar10", "emnist_digits", "mnist"])
def test_a_catalogue_set_has_no_options(name: str, tmp_path: Path) -> None:
    assert "data.kwargs of " in refusal_of(lambda: load(name, tmp_path, kwargs={"size": 3}))
