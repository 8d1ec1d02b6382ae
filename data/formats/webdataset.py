"""WebDataset shards: samples in tar files, read by position.

A sample is the files of one tar that share a name up to the first dot: `0001.jpg`, `0001.cls`
(https://github.com/webdataset/webdataset). WebDataset streams them, and then the order depends on
buffers, workers and ranks, and a run cannot go on where it stopped. Here the headers are read once
at the start, and a sample is two reads at known places: the order is that of any other data set.
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError, expect
from configs.schema import DataConfig
from data.formats.decode import PictureOptions, PictureReader
from data.formats.npy_file import load_npy
from data.formats.parts import REMEDY, PartOptions, choose_parts
from data.labels import SET_NUM_CLASSES, ClassCounter
from data.options import folder_of, read_options
from data.samples import NOTHING, Datasets, dtype_name
from data.splits import Indices

VALIDATIONS = ("val*.tar", "valid*.tar")


@dataclass(frozen=True, kw_only=True)
class ShardOptions(PartOptions, PictureOptions):
    """Parts are patterns of shards in data.root: train*.tar, test*.tar, val*.tar or valid*.tar."""

    train: str = "train*.tar"
    """Pattern of the training shards."""
    inputs: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Endings of the inputs: pictures, or npy for arrays."""
    target: str = "cls"
    """Ending of the targets: text of one whole number."""
    num_classes: int | None = None
    """Number of classes; default: the highest target plus one."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays = "npy" in self.inputs
        expect(self, "data.kwargs.inputs", bool(self.inputs), "one ending or more")
        expect(self, "data.kwargs.inputs", not arrays or len(self.inputs) == 1, "npy alone")
        expect(self, "data.kwargs.augment", not (arrays and self.augment), "pictures")
        positive = self.num_classes is None or self.num_classes >= 1
        expect(self, "data.kwargs.num_classes", positive, "1 or more")


class ShardDataset:
    """Samples of tar files, read by position.

    Args:
        shards: The tar files.
        index: Of each sample, int64 `(N, 4)`: shard, offset and size of the input, target.
        names: Of each sample, `SHARD: FILE` for messages.
        reader: Decodes pictures; None: the inputs are .npy files.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        index: NDArray[np.int64],
        names: NDArray[np.bytes_],
        reader: PictureReader | None,
    ) -> None:
        self.shards = shards
        self.index = index
        self.names = names
        self.reader = reader

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shard, offset, size, target = self.index[index].tolist()
        path = self.shards[shard]
        name = f"{path}: {os.fsdecode(bytes(self.names[index]))}"
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        return (self.reader or _read_array)(content, name), target

    @property
    def labels(self) -> Indices:
        return self.index[:, 3]

    def part(self, indices: Indices, *, training: bool) -> ShardDataset:
        reader = self.reader and self.reader.as_for(training=training)
        return ShardDataset(self.shards, self.index[indices], self.names[indices], reader)


def load_shards(config: DataConfig) -> Datasets:
    """The shards in `data.root`, indexed by their headers.

    Raises:
        InputError: If there are none, one is compressed or truncated, or a sample lacks a file.
    """
    options = read_options(ShardOptions, config)
    _refuse_addresses(config, options)
    root = folder_of(config.root, "train*.tar and val*.tar")
    shards = _find(root, options, cut_test=config.test > 0)
    pictures = options.inputs != ("npy",)
    sets: dict[str, ShardDataset] = {}
    counter = ClassCounter()
    for role, found in shards.items():
        reader = PictureReader(options, training=role == "train") if pictures else None
        sets[role] = ShardDataset(found, *_index(found, options), reader)
        counter.add(sets[role].labels, f"{role} samples of {root}")
    highest = counter.highest
    number = options.num_classes or len(options.classes) or counter.count(SET_NUM_CLASSES)
    if highest >= number:
        expected = f"more than the highest target {highest}"
        raise InputError("data.kwargs.num_classes", given=number, expected=expected)
    first = sets["train"][0][0]
    uint8 = first.dtype == torch.uint8
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        input_shape=tuple(first.shape),
        num_classes=number,
        **options.normalisation(first, pictures=pictures),
        scale=255.0 if uint8 else 1.0,
        classes=options.classes,
        dtype=dtype_name(first),
        fit=options.fit if pictures else None,
    )


def _refuse_addresses(config: DataConfig, options: ShardOptions) -> None:
    for key, value in (
        ("data.root", config.root),
        ("data.kwargs.train", options.train),
        ("data.kwargs.validation", options.validation),
        ("data.kwargs.test", options.test),
    ):
        if value is not None and ("://" in value or value.startswith("pipe:")):
            raise InputError(
                key,
                given=value,
                expected="files on this machine",
                remedy="A stream has no order to continue from: copy the shards to a disk first.",
            )


def _find(root: Path, options: ShardOptions, *, cut_test: bool) -> dict[str, list[Path]]:
    """The shards of each part, none of them in two."""

    def matching(pattern: str) -> list[Path]:
        found = {path for one in expand(pattern) for path in root.glob(one) if path.is_file()}
        return sorted(found)

    parts = choose_parts(
        options,
        lambda pattern: bool(matching(pattern)),
        cut_test=cut_test,
        tests=("test*.tar",),
        validations=VALIDATIONS,
    )
    shards = {role: matching(pattern) for role, pattern in parts.found}
    missing = [pattern for role, pattern in parts.found if not shards[role]]
    if not parts.test and not cut_test:
        missing.append(" or ".join(("test*.tar", *VALIDATIONS)))
    if missing:
        raise InputError(
            f"shards in {root}",
            given="none of that name",
            expected=" and ".join(missing),
            remedy=REMEDY,
        )
    for one, other in itertools.combinations(shards, 2):
        if shared := set(shards[one]) & set(shards[other]):
            raise InputError(
                f"shards in {root}",
                given=min(shared).name,
                expected=f"it in {one} or in {other} only",
            )
    return shards


MOST_SHARDS = 1_000_000


def expand(pattern: str) -> list[str]:
    """`train-{000..012}.tar` and `{train,more}-0.tar`, as the library writes them -> each name."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if ends is None:
        middles = found[1].split(",")
    else:
        first, last = int(ends[1][:18]), int(ends[2][:18])
        if last - first >= MOST_SHARDS:
            raise InputError("shards", given=pattern, expected=f"at most {MOST_SHARDS} of them")
        middles = [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [name for middle in middles for name in expand(f"{before}{middle}{after}")]


def _index(
    shards: Sequence[Path], options: ShardOptions
) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    rows: list[tuple[int, int, int, int]] = []
    names: list[bytes] = []
    for number, path in enumerate(shards):
        for name, offset, size, target in _samples(path, options):
            rows.append((number, offset, size, target))
            names.append(os.fsencode(name))
    return np.array(rows, np.int64), np.array(names)


def _samples(path: Path, options: ShardOptions) -> list[tuple[str, int, int, int]]:
    """Input, its offset and size, and target of each sample of a shard, in the shard's order."""
    inputs: dict[str, tuple[str, int, int]] = {}
    targets: dict[str, int] = {}
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:  # a compressed one has no positions
            for member in tar:
                if not member.isreg():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("unexpected end of data")
                folder, _, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                key = f"{folder}/{stem}"
                known = inputs if ending.lower() in options.inputs else targets
                if key in known and (known is inputs or ending == options.target):
                    other = inputs[key][0] if known is inputs else f"another {member.name}"
                    raise InputError(
                        f"{path}: sample {key.lstrip('/')}",
                        given=f"{other} and {member.name}",
                        expected=f"one input and one target ({options.target})",
                        remedy="A key ends at the first dot of a file's name: give each sample its "
                        "own, and choose the inputs with data.kwargs.inputs.",
                    )
                if known is inputs:
                    inputs[key] = member.name, member.offset_data, member.size
                elif ending == options.target:
                    content = tar.extractfile(member)
                    assert content is not None
                    targets[key] = _number(content.read(), f"{path}: {member.name}")
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{path} cannot be read ({error})",
            expected="a whole .tar, not compressed",
            remedy="Write the shard again.",
        ) from None
    if alone := sorted(inputs.keys() ^ targets.keys()):
        raise InputError(
            f"{path}: sample {alone[0].lstrip('/')}",
            given="one file only",
            expected=f"an input ({', '.join(options.inputs)}) and a target ({options.target})",
        )
    if not inputs:
        raise InputError(str(path), expected=f"samples with {' or '.join(options.inputs)}")
    return [(*location, targets[key]) for key, location in inputs.items()]


def _number(content: bytes, name: str) -> int:
    try:
        value = int(content)
    except ValueError:
        value = -1
    if value < 0:
        raise InputError(name, given=content[:20], expected="a whole number, 0 or more, as text")
    return value


def _read_array(content: bytes, name: str) -> Tensor:
    array = load_npy(content, name)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InputError(name, given=array.dtype, expected=f"numbers ({error})") from None
