"""Anybody's four IDX files: which is which, and do they belong together."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import InputError
from configs.schema import DataConfig
from data.catalogue.dataset_facts import ROLES
from data.formats.idx import GZIP_MAGIC, read_idx
from data.labels import ClassCounter
from data.options import folder_of, refuse_options
from data.samples import ArrayDataset, Datasets, moments


def load_idx_folder(config: DataConfig) -> Datasets:
    """The files in `data.root`; shape, classes, mean and standard deviation are found from them.

    Raises:
        InputError: If they are missing, broken or do not belong together.
    """
    refuse_options(config)
    paths = idx_files(config.root)
    data = pair_up({role: read_idx(path) for role, path in paths.items()}, paths)
    assert isinstance(data.train, ArrayDataset)
    mean, std, scale = moments(data.train.inputs)
    return Datasets(
        train=data.train,
        test=data.test,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        mean=mean,
        std=std,
        scale=scale,
    )


def idx_files(root: str | None) -> dict[str, Path]:
    """The four IDX files in a folder, by role.

    Raises:
        InputError: If there is no such folder, or a role has no file or several.
    """
    folder = folder_of(root, "your IDX files with data.dataset=idx")
    if (folder / "idx").is_dir():
        folder = folder / "idx"
    return _assign_roles(folder)


def pair_up(
    arrays: dict[str, NDArray[Any]], paths: dict[str, Path], *, classes_known: bool = False
) -> Datasets:
    """Check that images and labels belong together, and make tensors of them.

    Args:
        arrays: Images and labels of both splits, by role.
        paths: Where they come from, for messages.
        classes_known: Whether the caller knows the classes: labels need not tell.

    Raises:
        InputError: If they do not.
    """
    counter = ClassCounter()
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        path = paths[f"{split}_labels"]
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or images.ndim < 2:
            raise InputError(
                f"{path} and {paths[f'{split}_images'].name}",
                given=f"labels {labels.dtype}{labels.shape}, images {images.dtype}{images.shape}",
                expected="labels of whole numbers with one dimension, images with two or more",
            )
        if len(images) != len(labels) or len(labels) == 0:
            raise InputError(
                f"{path}: number of labels",
                given=len(labels),
                expected=f"one for each of the {len(images)} images, and at least one",
            )
        counter.add(labels, str(path))
    train, test = (_channels_first(arrays[f"{split}_images"]) for split in ("train", "test"))
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype or 0 in train.shape:
        raise InputError(
            f"{paths['test_images']}: images",
            given=f"{test.dtype}{test.shape[1:]}",
            expected=f"{train.dtype}{train.shape[1:]} without empty dimensions, as in training",
        )
    targets = [arrays[f"{split}_labels"].astype(np.int64) for split in ("train", "test")]
    return Datasets(
        train=ArrayDataset(torch.from_numpy(train), torch.from_numpy(targets[0])),
        test=ArrayDataset(torch.from_numpy(test), torch.from_numpy(targets[1])),
        input_shape=tuple(train.shape[1:]),
        num_classes=counter.highest + 1 if classes_known else counter.count(),
    )


def _assign_roles(folder: Path) -> dict[str, Path]:
    """Tell four files apart: images have two dimensions or more; test files are named so."""
    candidates = [path for path in sorted(folder.iterdir()) if _rank_of(path) is not None]
    roles: dict[str, list[Path]] = {role: [] for role in ROLES}
    for path in candidates:
        words = path.name.lower()
        is_test = any(word in words for word in ("test", "t10k", "val", "eval"))
        split = "test" if is_test and not words.startswith("train") else "train"
        roles[f"{split}_{'labels' if _rank_of(path) == 1 else 'images'}"].append(path)
    # The same file both plain and compressed counts once.
    unique = {
        role: {path.name.removesuffix(".gz"): path for path in r} for role, r in roles.items()
    }
    if any(len(found) != 1 for found in unique.values()):
        raise InputError(
            f"the IDX files in {folder}",
            given={role: sorted(found) for role, found in unique.items()},
            expected="one file for each role, such as train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, test-images-idx3-ubyte, test-labels-idx1-ubyte (or .gz)",
            remedy="Images have two dimensions or more, labels one; test files have `test` or "
            "`t10k` in their names.",
        )
    return {role: next(iter(found.values())) for role, found in unique.items()}


def _rank_of(path: Path) -> int | None:
    """Number of dimensions of an IDX file, None for any other file."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as raw:
            head = raw.read(4)
            if head[:2] == GZIP_MAGIC:
                raw.seek(0)
                head = gzip.GzipFile(fileobj=raw).read(4)
    except (OSError, EOFError, zlib.error):
        return None
    return head[3] if len(head) == 4 and head[:2] == b"\0\0" else None


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W) -> (N, 1, H, W); (N, H, W, C) with at most 4 channels -> (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] <= 4 < images.shape[1]:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images
