"""What the catalogue knows of a published data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROLES = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """One published file: `name` without .gz, sizes in bytes, hex digests."""

    name: str
    gz_bytes: int = 0
    gz_sha256: str | None = None
    """SHA-256 of the compressed file where it is published by itself, checked after a download."""
    sha256: str | None = None
    """SHA-256 of the uncompressed content, where it is known: checked at every read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFacts:
    """One published archive (.zip or .tar.gz) that holds all files of a data set, or of several."""

    name: str
    num_bytes: int
    sha256: str
    folder: str
    """The folder in the archive that holds the files."""
    members: tuple[str, ...]
    """Their names; nothing else is taken out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """One published data set of images with `classes`."""

    name: str
    files: dict[str, FileFacts]
    """Files by role: ROLES for IDX files; train_1, train_2, ..., test for CIFAR's binary
    version."""
    mirrors: tuple[str, ...]
    num_train: int
    num_test: int
    image_shape: tuple[int, int]
    channels: int = 1
    mean: tuple[float, ...] = ()
    """Mean of the training pixels in [0, 1], one per channel; empty: found when they are read."""
    std: tuple[float, ...] = ()
    classes: tuple[str, ...]
    licence: str
    embedded: Path | None = None
    archive: ArchiveFacts | None = None
    home: str = ""
    """Name of the folder it is kept in, if that is not its own name."""
    cifar_labels: int = 0
    """Label bytes of a record in CIFAR's binary version, the last one counts; 0: IDX files."""
    transposed: bool = False
    """Whether rows and columns of the images are swapped in the files."""
    first_label: int = 0

    @property
    def folder(self) -> str:
        return self.home or self.name

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.image_shape)
