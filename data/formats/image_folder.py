"""Trees of picture files, a folder for each class: ROOT/train/CLASS/x.jpg, ROOT/val/CLASS/y.png."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from configs.schema import DataConfig
from data.formats.decode import PictureOptions, PictureReader
from data.formats.picture_tree import class_folders, find_pictures, readable_endings
from data.options import folder_of, read_options
from data.samples import Datasets

log = logging.getLogger("convoy")

TESTS = ("val", "valid", "validation", "test")
"""Names of the folder to evaluate on, in the order in which they are looked for."""


@dataclass(frozen=True, kw_only=True)
class FolderOptions(PictureOptions):
    train: str = "train"
    """Folder of the training pictures in data.root."""
    test: str | None = None
    """Folder of the test pictures; default: the first of val, valid, validation, test."""


class ImageFolder:
    """Pictures of a tree, decoded when they are read.

    Args:
        folder: What the paths begin with.
        files: Paths below it as bytes; one array, since a million Python strings would be copied
            into every worker bit by bit as their reference counts change.
        labels: int64 `(N,)`.
        reader: Decodes them.
    """

    def __init__(
        self,
        folder: Path,
        files: NDArray[np.bytes_],
        labels: NDArray[np.int64],
        reader: PictureReader,
    ) -> None:
        self.folder = folder
        self.files = files
        self.labels = labels
        self.reader = reader

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.folder / os.fsdecode(bytes(self.files[index]))
        return self.reader(path, str(path)), int(self.labels[index])


def load_image_folder(config: DataConfig) -> Datasets:
    """The trees under `data.root`; classes are their folders in alphabetical order.

    Raises:
        InputError: If a folder is missing or empty, or training and test classes differ.
    """
    options = read_options(FolderOptions, config)
    root = folder_of(config.root, "train/CLASS/*.jpg and val/CLASS/*.jpg")
    train, test = _part(root, options.train), _part(root, options.test, TESTS)
    classes, tested = _classes(train), _classes(test)
    if classes != tested:
        raise InputError(
            f"class folders in {test.name} and {train.name} of {root}",
            given=f"only in {train.name}: {_some(classes, tested)}; "
            f"only in {test.name}: {_some(tested, classes)}",
            expected="the same ones in both",
            remedy=f"Rename them; a class without pictures in {test.name} needs an empty folder.",
        )
    mean, std = options.moments
    return Datasets(
        train=_read_tree(train, classes, PictureReader(options, training=True)),
        test=_read_tree(test, classes, PictureReader(options, training=False), may_lack=True),
        input_shape=options.input_shape,
        num_classes=len(classes),
        mean=mean,
        std=std,
        scale=255.0,
        classes=tuple(classes),
        dtype="uint8",
    )


def _part(root: Path, name: str | None, default: tuple[str, ...] = ()) -> Path:
    candidates = [name] if name is not None else list(default)
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    found = sorted(path.name for path in root.iterdir() if path.is_dir())[:8]
    raise InputError(
        f"folders in {root}",
        given=", ".join(found) or "none",
        expected=f"{' or '.join(candidates)} with a folder for each class",
        remedy="Others are named by data.kwargs.train and data.kwargs.test.",
    )


def _classes(folder: Path) -> list[str]:
    names = class_folders(folder)
    if not names:
        raise InputError(str(folder), expected="a folder for each class in it")
    return names


def _some(names: list[str], others: list[str]) -> str:
    only = [name for name in names if name not in set(others)]
    return ", ".join(only[:5]) + (", ..." if len(only) > 5 else "") if only else "none"


def _read_tree(
    folder: Path, classes: list[str], reader: PictureReader, may_lack: bool = False
) -> ImageFolder:
    """Paths and labels in an order that depends on names only."""
    files: list[bytes] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    endings = readable_endings()
    for label, name in enumerate(classes):
        found, others = find_pictures(folder, name, endings)
        left_out += others
        if not found and not may_lack:
            raise _empty(folder / name, endings, others)
        files += found
        labels += [label] * len(found)
    if not files:
        raise _empty(folder, endings, left_out)
    if left_out:
        log.warning("%s: %d pictures; left out: %s", folder, len(files), _counted(left_out))
    return ImageFolder(folder, np.array(files), np.array(labels, np.int64), reader)


def _empty(folder: Path, endings: tuple[str, ...], left_out: Counter[str]) -> InputError:
    return InputError(
        str(folder),
        given=_counted(left_out) or "nothing",
        expected=f"pictures ({', '.join(endings)}) in it",
    )


def _counted(left_out: Counter[str]) -> str:
    """`.txt 3, hidden 1`, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in left_out.most_common(8))
