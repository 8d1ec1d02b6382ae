"""The catalogue's facts agree with each other and with the embedded MNIST."""

from __future__ import annotations

import gzip
import hashlib
import re
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from data.catalog import CATALOG, MNIST, ROLES, DatasetFacts
from data.idx import read_idx

ENTRIES = pytest.mark.parametrize("facts", CATALOG.values(), ids=list(CATALOG))


@cache
def embedded(role: str) -> NDArray[np.uint8]:
    assert MNIST.embedded is not None
    return read_idx(MNIST.embedded / f"{MNIST.files[role].name}.gz")


@ENTRIES
def test_an_entry_has_four_files_a_mirror_and_ten_classes(facts: DatasetFacts) -> None:
    assert CATALOG[facts.name] is facts
    assert tuple(facts.files) == ROLES
    assert len({file.name for file in facts.files.values()}) == 4
    assert len(facts.mirrors) >= 1
    assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in facts.mirrors)
    assert len(facts.classes) == len(set(facts.classes)) == 10
    assert facts.licence


@ENTRIES
def test_an_entry_describes_images_that_can_be_normalised(facts: DatasetFacts) -> None:
    assert (facts.num_train, facts.num_test, facts.image_shape) == (60_000, 10_000, (28, 28))
    assert 0 < facts.mean < 1
    assert 0 < facts.std <= 0.5, "no values in [0, 1] deviate more"


@ENTRIES
def test_every_file_has_a_size_and_digests_that_could_be_right(facts: DatasetFacts) -> None:
    for role, file in facts.files.items():
        digests = [digest for digest in (file.gz_sha256, file.sha256) if digest is not None]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        assert file.gz_bytes > (100_000 if role.endswith("images") else 1000)


def test_no_two_published_files_share_a_digest() -> None:
    """A digest copied to the wrong line would let one file pass for another."""
    digests = [file.gz_sha256 for facts in CATALOG.values() for file in facts.files.values()]
    plain = [file.sha256 for facts in CATALOG.values() for file in facts.files.values()]
    known = digests + [digest for digest in plain if digest is not None]
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
    assert abs(mean - MNIST.mean) <= 0.5e-4
    assert abs(std - MNIST.std) <= 0.5e-4
