"""The catalogue's facts agree with each other and with the embedded MNIST."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from data.catalogue.catalog import CATALOG, MNIST
from data.catalogue.dataset_facts import ROLES, DatasetFacts
from data.formats.idx import read_idx

NUM_CLASSES = {
    "emnist_balanced": 47,
    "emnist_byclass": 62,
    "emnist_bymerge": 47,
    "emnist_letters": 26,
    "cifar100": 100,
}
ENTRIES = pytest.mark.parametrize("facts", CATALOG.values(), ids=list(CATALOG))


@cache
def embedded(role: str) -> NDArray[np.uint8]:
    assert MNIST.embedded is not None
    return read_idx(MNIST.embedded / f"{MNIST.files[role].name}.gz")


@ENTRIES
def test_an_entry_has_files_a_mirror_and_distinct_classes(facts: DatasetFacts) -> None:
    assert CATALOG[facts.name] is facts
    if facts.cifar_labels:
        assert {role.partition("_")[0] for role in facts.files} == {"train", "test"}
    else:
        assert tuple(facts.files) == ROLES
    assert len({file.name for file in facts.files.values()}) == len(facts.files)
    assert len(facts.mirrors) >= 1
    assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in facts.mirrors)
    assert len(facts.classes) == len(set(facts.classes)) == NUM_CLASSES.get(facts.name, 10)
    assert facts.licence


@ENTRIES
def test_an_entry_describes_images_that_can_be_normalised(facts: DatasetFacts) -> None:
    assert facts.num_train > facts.num_test >= 10_000
    assert facts.input_shape in ((1, 28, 28), (3, 32, 32))
    assert len(facts.mean) == len(facts.std) in (0, facts.channels)
    assert all(0 < mean < 1 for mean in facts.mean)
    assert all(0 < std <= 0.5 for std in facts.std), "no values in [0, 1] deviate more"


@ENTRIES
def test_every_file_has_a_size_and_digests_that_could_be_right(facts: DatasetFacts) -> None:
    for role, file in facts.files.items():
        digests = [digest for digest in (file.gz_sha256, file.sha256) if digest is not None]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        if facts.archive is None:
            assert file.gz_sha256 is not None
            assert file.gz_bytes > (100_000 if role.endswith("images") else 1000)
    if facts.archive is not None:
        assert re.fullmatch("[0-9a-f]{64}", facts.archive.sha256)
        assert facts.archive.num_bytes > 100_000_000
        members = {name.removesuffix(".gz") for name in facts.archive.members}
        assert members >= {file.name for file in facts.files.values()}


def test_no_two_published_files_share_a_digest() -> None:
    """A digest copied to the wrong line would let one file pass for another."""
    files = [file for facts in CATALOG.values() for file in facts.files.values()]
    archives = {facts.archive for facts in CATALOG.values() if facts.archive is not None}
    digests = [digest for file in files for digest in (file.gz_sha256, file.sha256)]
    known = [digest for digest in digests if digest is not None]
    known += [archive.sha256 for archive in archives]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("role", ROLES)
def test_the_embedded_mnist_is_the_published_one(role: str) -> None:
    """Law: the uncompressed content is the publisher's, byte for byte."""
    assert MNIST.embedded is not None
    content = gzip.decompress((MNIST.embedded / f"{MNIST.files[role].name}.gz").read_bytes())
    assert hashlib.sha256(content).hexdigest() == MNIST.files[role].sha256


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_embedded_mnist_has_the_counts_shapes_and_classes_of_its_entry(split: str) -> None:
    count = MNIST.num_train if split == "train" else MNIST.num_test
    images, labels = embedded(f"{split}_images"), embedded(f"{split}_labels")
    assert (images.shape, images.dtype) == ((count, *MNIST.image_shape), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.uint8)
    assert sorted(set(labels.tolist())) == list(range(len(MNIST.classes)))
    assert MNIST.classes == tuple(map(str, range(10)))


def test_mean_and_deviation_agree_with_the_training_pixels_to_the_digits_given() -> None:
    counts = np.bincount(embedded("train_images").reshape(-1), minlength=256).astype(np.float64)
    levels = np.arange(256) / 255
    mean = (counts * levels).sum() / counts.sum()
    std = np.sqrt((counts * (levels - mean) ** 2).sum() / counts.sum())
    assert abs(mean - MNIST.mean[0]) <= 0.5e-4
    assert abs(std - MNIST.std[0]) <= 0.5e-4
