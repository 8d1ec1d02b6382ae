"""Trees of picture files, a folder for each class: ROOT/train/CLASS/x.jpg, ROOT/val/CLASS/y.png."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from configs.schema import DataConfig
from data.formats.decode import PictureOptions, PictureReader
from data.formats.parts import REMEDY, VALIDATION_NAMES, PartOptions, Parts, choose_parts
from data.formats.picture_tree import class_folders, find_pictures, readable_endings
from data.options import folder_of, read_options
from data.samples import NOTHING, Datasets
from data.splits import Indices

log = logging.getLogger("convoy")


@dataclass(frozen=True, kw_only=True)
class FolderOptions(PartOptions, PictureOptions):
    """Parts are folders in data.root; without one to train on, that is the one folder of all."""


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

    def part(self, indices: Indices, *, training: bool) -> ImageFolder:
        reader = self.reader.as_for(training=training)
        return ImageFolder(self.folder, self.files[indices], self.labels[indices], reader)


def load_image_folder(config: DataConfig) -> Datasets:
    """The trees under `data.root`; classes are their folders in alphabetical order.

    Raises:
        InputError: If a folder is missing or empty, or training and test classes differ.
    """
    options = read_options(FolderOptions, config)
    root = folder_of(config.root, "train/CLASS/*.jpg and test/CLASS/*.jpg")
    parts = choose_parts(options, lambda name: _is_tree(root / name), cut_test=config.test > 0)
    folders = _folders(root, parts, cut_test=config.test > 0)
    classes = _classes(folders["train"])
    sets: dict[str, ImageFolder] = {}
    left_out: list[str] = []
    for role, folder in folders.items():
        _check_same(classes, folders["train"], folder)
        reader = PictureReader(options, training=role == "train")
        sets[role], others = _read_tree(folder, classes, reader, may_lack=role != "train")
        if others:
            total = len(sets[role]) + others.total()
            left_out.append(f"{others.total():,} of {total:,} files: {_counted(others)}")
            log.warning("%s: left out %s", folder, left_out[-1])
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        input_shape=options.input_shape,
        num_classes=len(classes),
        **options.moments(options.input_shape),
        scale=255.0,
        classes=tuple(classes),
        dtype="uint8",
        fit=options.fit,
        left_out=tuple(left_out),
    )


def _folders(root: Path, parts: Parts, *, cut_test: bool) -> dict[str, Path]:
    """The folder of each part that is there; the root alone if it has no parts but classes."""
    if cut_test and len(parts.found) == 1 and not (root / parts.train).is_dir():
        return {"train": root}
    missing = [name for _, name in parts.found if not (root / name).is_dir()]
    if not parts.test and not cut_test:
        missing.append(" or ".join(("test", *VALIDATION_NAMES)))
    if missing:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())[:8]
        raise InputError(
            f"folders in {root}",
            given=", ".join(found) or "none",
            expected=f"{' and '.join(missing)} with a folder for each class",
            remedy=REMEDY,
        )
    return {role: root / name for role, name in parts.found}


def _is_tree(folder: Path) -> bool:
    """Whether it has folders: pictures to test on that lie side by side have no classes."""
    return folder.is_dir() and bool(class_folders(folder))


def _check_same(classes: dict[str, str], train: Path, other: Path) -> None:
    found = _classes(other)
    if classes.keys() != found.keys():
        raise InputError(
            f"class folders in {other.name} and {train.name} of {train.parent}",
            given=f"only in {train.name}: {_some(classes, found)}; "
            f"only in {other.name}: {_some(found, classes)}",
            expected="the same ones in both",
            remedy=f"Rename them; a class without pictures in {other.name} needs an empty folder.",
        )


def _classes(folder: Path) -> dict[str, str]:
    """The folder of each class by its name, composed (NFC): systems spell an umlaut in two ways."""
    folders = class_folders(folder)
    if not folders:
        raise InputError(str(folder), expected="a folder for each class in it")
    names = {unicodedata.normalize("NFC", name): name for name in folders}
    if len(names) < len(folders):
        twice = next(name for name in folders if name not in names.values())
        raise InputError(f"{folder}: class {twice!r}", given="two folders", expected="one")
    return names


def _some(names: Iterable[str], others: Container[str]) -> str:
    only = [name for name in names if name not in others]
    return ", ".join(only[:5]) + (", ..." if len(only) > 5 else "") if only else "none"


def _read_tree(
    folder: Path, classes: Iterable[str], reader: PictureReader, may_lack: bool = False
) -> tuple[ImageFolder, Counter[str]]:
    """Paths and labels in an order that depends on names only; how many files are none, and why."""
    files: list[bytes] = []
    labels: list[int] = []
    left_out: Counter[str] = Counter()
    endings, folders = readable_endings(), _classes(folder)
    for label, name in enumerate(folders[name] for name in classes):
        found, others = find_pictures(folder, name, endings)
        left_out += others
        if not found and not may_lack:
            raise _empty(folder / name, endings, others)
        files += found
        labels += [label] * len(found)
    if not files:
        raise _empty(folder, endings, left_out)
    return ImageFolder(folder, np.array(files), np.array(labels, np.int64), reader), left_out


def _empty(folder: Path, endings: tuple[str, ...], left_out: Counter[str]) -> InputError:
    return InputError(
        str(folder),
        given=_counted(left_out) or "nothing",
        expected=f"pictures ({', '.join(endings)}) in it",
    )


def _counted(left_out: Counter[str]) -> str:
    """`.txt 3, hidden 1`, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in left_out.most_common(8))
