"""EMNIST: handwritten letters and digits in six splits, published as one zip of IDX files.

G. Cohen, S. Afshar, J. Tapson, A. van Schaik, EMNIST: an extension of MNIST to handwritten letters
(2017), https://www.nist.gov/itl/products-and-services/emnist-dataset. The images are transposed
with respect to MNIST, and the labels of `letters` begin with 1. NIST publishes no digests: the
SHA-256 of the zip is the one that other data loaders have pinned (MLDatasets.jl among them); their
MD5 of it, torchvision's, is 58c8d27c78d21e728a6bc7b3cc06412e. Mean and standard deviation are found
from the pixels.
"""

from __future__ import annotations

import string

from data.catalogue.dataset_facts import ROLES, ArchiveFacts, DatasetFacts, FileFacts

DIGITS, UPPER, LOWER = (
    tuple(letters) for letters in (string.digits, string.ascii_uppercase, string.ascii_lowercase)
)
MERGED = (*DIGITS, *UPPER, *"abdefghnqrt")
"""47 classes: small letters that look like their capitals count as those."""
SPLITS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "balanced": (MERGED, 112_800, 18_800),
    "byclass": ((*DIGITS, *UPPER, *LOWER), 697_932, 116_323),
    "bymerge": (MERGED, 697_932, 116_323),
    "digits": (DIGITS, 240_000, 40_000),
    "letters": (UPPER, 124_800, 20_800),
    "mnist": (DIGITS, 60_000, 10_000),
}
"""Classes, training and test images of each split."""


def _names(split: str) -> dict[str, str]:
    """File names by role, without .gz."""
    endings = {"images": "images-idx3-ubyte", "labels": "labels-idx1-ubyte"}
    names = {}
    for role in ROLES:
        part, kind = role.split("_")
        names[role] = f"emnist-{split}-{part}-{endings[kind]}"
    return names


ARCHIVE = ArchiveFacts(
    name="gzip.zip",
    num_bytes=561_753_746,
    sha256="fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
    folder="gzip",
    members=tuple(f"{name}.gz" for split in SPLITS for name in _names(split).values()),
)

EMNIST = tuple(
    DatasetFacts(
        name=f"emnist_{split}",
        files={role: FileFacts(name=name) for role, name in _names(split).items()},
        mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        num_train=num_train,
        num_test=num_test,
        image_shape=(28, 28),
        classes=classes,
        licence="public domain, NIST Special Database 19",
        archive=ARCHIVE,
        home="emnist",
        transposed=True,
        first_label=1 if split == "letters" else 0,
    )
    for split, (classes, num_train, num_test) in SPLITS.items()
)
