"""Anybody's IDX files: which is which, and do they belong together."""

from __future__ import annotations

import gzip
import logging
import zlib
from dataclasses import replace
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
from data.samples import NOTHING, ArrayDataset, Datasets, moments_of_array

log = logging.getLogger("convoy")

EMNIST_CLASSES = (27, 47, 62)
"""Labels of letters (from 1), balanced and bymerge, byclass."""


def load_idx_folder(config: DataConfig) -> Datasets:
    """The files in `data.root`; shape, classes, mean and standard deviation are found from them.

    Raises:
        InputError: If they are missing, broken or do not belong together.
    """
    refuse_options(config)
    folder = folder_of(config.root, "your IDX files with data.dataset=idx")
    if (folder / "idx").is_dir():
        folder = folder / "idx"
    paths = _assign_roles(folder, cut_test=config.test > 0)
    data = pair_up({role: read_idx(path) for role, path in paths.items()}, paths)
    _say_emnist(paths["train_images"], data)
    return replace(data, measure=moments_of_array)


def _say_emnist(path: Path, data: Datasets) -> None:
    """EMNIST's images lie on their sides; only a person can tell whether these do."""
    if data.input_shape == (1, 28, 28) and (
        "emnist" in str(path).lower() or data.num_classes in EMNIST_CLASSES
    ):
        log.warning(
            "%s: EMNIST's images have rows and columns exchanged, and are read as they are; if "
            "these are EMNIST, use --data.dataset emnist_balanced or another of its splits",
            path,
        )


def pair_up(
    arrays: dict[str, NDArray[Any]], paths: dict[str, Path], *, classes_known: bool = False
) -> Datasets:
    """Check that images and labels belong together, and make tensors of them.

    Args:
        arrays: Images and labels of each split, by role.
        paths: Where they come from, for messages.
        classes_known: Whether the caller knows the classes: labels need not tell.

    Raises:
        InputError: If they do not.
    """
    counter = ClassCounter()
    splits = [role.removesuffix("_labels") for role in arrays if role.endswith("_labels")]
    for split in splits:
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
    inputs = {split: _channels_first(arrays[f"{split}_images"]) for split in splits}
    train = inputs["train"]
    for split, other in inputs.items():
        if train.shape[1:] != other.shape[1:] or train.dtype != other.dtype or 0 in train.shape:
            raise InputError(
                f"{paths[f'{split}_images']}: images",
                given=f"{other.dtype}{other.shape[1:]}",
                expected=f"{train.dtype}{train.shape[1:]} without empty dimensions, as in training",
            )
    sets = {
        split: ArrayDataset(
            torch.from_numpy(inputs[split]),
            torch.from_numpy(arrays[f"{split}_labels"].astype(np.int64)),
        )
        for split in splits
    }
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        input_shape=tuple(train.shape[1:]),
        num_classes=counter.highest + 1 if classes_known else counter.count(),
    )


def _assign_roles(folder: Path, *, cut_test: bool) -> dict[str, Path]:
    """Tell files apart: images have two dimensions or more; others than training's are named so."""
    roles: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        rank = _rank_of(path)
        if rank is not None:
            role = f"{_split_of(path.name.lower())}_{'labels' if rank == 1 else 'images'}"
            # The same file both plain and compressed counts once.
            roles.setdefault(role, {})[path.name.removesuffix(".gz")] = path
    wanted = [*ROLES[:2], *(() if cut_test else ROLES[2:])]
    validation = [role for role in roles if role.startswith("validation")]
    if not cut_test and not any(role.startswith("test") for role in roles):
        for role in validation:  # alone it is what there is to test on
            roles[role.replace("validation", "test")] = roles.pop(role)
    elif validation:
        wanted += ["validation_images", "validation_labels"]
    if sorted(roles) != sorted(wanted) or any(len(found) != 1 for found in roles.values()):
        raise InputError(
            f"the IDX files in {folder}",
            given={
                role: sorted(roles.get(role, ())) for role in {**dict.fromkeys(wanted), **roles}
            },
            expected="one file for each role, such as train-images-idx3-ubyte, "
            "train-labels-idx1-ubyte, test-images-idx3-ubyte, test-labels-idx1-ubyte (or .gz)",
            remedy="Images have two dimensions or more, labels one; test files have `test` or "
            "`t10k` in their names, those of a validation set `val`. "
            "--data.test 0.1 cuts a test set out of the training set.",
        )
    return {role: next(iter(roles[role].values())) for role in wanted}


def _split_of(name: str) -> str:
    if name.startswith("train"):
        return "train"
    if "test" in name or "t10k" in name:
        return "test"
    return "validation" if "val" in name else "train"


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
