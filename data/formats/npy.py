"""Arrays in .npy files that do not fit into memory: mapped, and read a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError, expect
from configs.schema import DataConfig
from data.formats.npy_file import load_npy
from data.labels import SET_NUM_CLASSES, ClassCounter
from data.options import MomentOptions, folder_of, read_options
from data.samples import NOTHING, BatchDataset, Datasets, Moments, moments

SPLITS = ("train", "test", "validation")
FILES = ("train_inputs.npy", "train_targets.npy", "test_inputs.npy", "test_targets.npy")
DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
MOMENTS_BYTES = 1 << 26
"""Most of the inputs that mean and deviation are estimated from."""
CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class MappedOptions(MomentOptions):
    channels_last: bool | None = None
    """Inputs are `(N, H, W, C)` in the file; the model gets `(N, C, H, W)`. Must be said where the
    shape looks like it."""
    num_classes: int | None = None
    """Number of classes; default: the highest target plus one."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = self.num_classes is None or self.num_classes >= 1
        expect(self, "data.kwargs.num_classes", positive, "1 or more")


class MappedDataset:
    """Inputs and targets in two .npy files, mapped into memory and never read completely.

    A batch is read in the order of the file, which a disk likes better than that of an epoch, and
    then put into the order asked for. The system keeps in memory what fits.

    Args:
        inputs: Path of inputs `(N, ...)`.
        targets: Path of whole numbers `(N,)`, or of numbers `(N, ...)` for other tasks.
        channels_last: Whether inputs `(N, H, W, C)` become `(N, C, H, W)`.

    Raises:
        InputError: If a file cannot be mapped or the two do not belong together.
    """

    def __init__(self, inputs: Path, targets: Path, *, channels_last: bool = False) -> None:
        self.paths = inputs, targets
        self.channels_last = channels_last
        self.inputs, self.targets = map_npy(inputs), map_npy(targets)
        if channels_last and self.inputs.ndim != 4:
            raise InputError(
                f"{inputs}: shape",
                given=self.inputs.shape,
                expected="(N, H, W, C) with data.kwargs.channels_last",
            )
        if len(self.inputs) != len(self.targets):
            raise InputError(
                f"{targets}: number of targets",
                given=len(self.targets),
                expected=f"one for each of the {len(self.inputs)} inputs in {inputs.name}",
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # numpy would pickle the whole array for a worker that is not forked
        return _map_again, (*self.paths, self.channels_last)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.gather(torch.tensor([index]))
        return inputs[0], targets[0]

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a batch, copied out of the files."""
        wanted = indices.numpy()
        order = np.argsort(wanted, kind="stable")
        return self._read(self.inputs, wanted, order, self.channels_last), _as_targets(
            self._read(self.targets, wanted, order)
        )

    @staticmethod
    def _read(
        array: NDArray[Any], wanted: NDArray[Any], order: NDArray[Any], channels_last: bool = False
    ) -> Tensor:
        rows = array[wanted[order]]
        if channels_last:
            rows = rows.transpose(0, 3, 1, 2)
        found = np.empty(rows.shape, rows.dtype)
        found[order] = rows
        return torch.from_numpy(found)


def load_mapped(config: DataConfig) -> Datasets:
    """The files in `data.root`: inputs and targets to train on, to test on, and perhaps two more,
    `validation_inputs.npy` and `validation_targets.npy`.

    Mean and standard deviation, unless given, are those of up to 64 MiB of training inputs spread
    evenly over the file: the same on every rank, and no pass over all of it.

    Raises:
        InputError: If a file is missing, cannot be mapped, or does not fit the others.
    """
    options = read_options(MappedOptions, config)
    folder = folder_of(config.root, ", ".join(FILES))
    sets = _map_sets(folder, options, cut_test=config.test > 0)
    train = sets["train"]
    shape = tuple(train[0][0].shape)
    known = options.given(shape) or {"measure": _moments_of_files}
    if options.mean and train.inputs.dtype == np.uint8:
        known["scale"] = 255.0
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        **known,
        input_shape=shape,
        num_classes=_num_classes(options, list(sets.values())),
        classes=options.classes,
        dtype=train.inputs.dtype.name,
    )


def _map_sets(folder: Path, options: MappedOptions, *, cut_test: bool) -> dict[str, MappedDataset]:
    """The sets whose files are there, of one shape and type."""
    splits = [
        split
        for split in SPLITS
        if split == "train"
        or any(folder.glob(f"{split}_*.npy"))
        or (split == "test" and not cut_test)
    ]
    files = [f"{split}_{kind}.npy" for split in splits for kind in ("inputs", "targets")]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}",
            expected=", ".join(files),
            remedy="--data.test 0.1 cuts a test set out of the training set.",
        )
    sets = {
        split: MappedDataset(
            folder / f"{split}_inputs.npy",
            folder / f"{split}_targets.npy",
            channels_last=bool(options.channels_last),
        )
        for split in splits
    }
    train = sets["train"]
    if options.channels_last is None:
        _refuse_guessing(train)
    for split, other in sets.items():
        for first, second in ((train.inputs, other.inputs), (train.targets, other.targets)):
            if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
                raise InputError(
                    f"{split} files in {folder}",
                    given=f"{second.dtype}{second.shape[1:]}",
                    expected=f"{first.dtype}{first.shape[1:]}, as in training",
                )
    return sets


def _refuse_guessing(train: MappedDataset) -> None:
    """Refuse inputs that look like `(N, H, W, C)`: as `(N, C, H, W)` they are nonsense that
    trains."""
    shape = train.inputs.shape
    if len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] > 4:
        raise InputError(
            f"{train.paths[0]}: shape",
            given=shape,
            expected="(N, C, H, W), or to be told that the channels come last",
            remedy="Use --data.kwargs.channels_last true; or false, if this is no mistake.",
        )


def map_npy(path: Path) -> NDArray[Any]:
    """Map an .npy file into memory, read-only.

    Raises:
        InputError: If it is truncated, holds no samples, or numbers that tensors do not have.
    """
    array = load_npy(path, str(path))
    if array.ndim == 0 or 0 in array.shape:
        raise InputError(
            f"{path}: shape",
            given=array.shape,
            expected="(N, ...) with one sample or more",
        )
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        raise InputError(
            f"{path}: type", given=array.dtype.str, expected=f"{', '.join(DTYPES)}, native order"
        )
    return array


def _map_again(inputs: Path, targets: Path, channels_last: bool) -> MappedDataset:
    return MappedDataset(inputs, targets, channels_last=channels_last)


def _as_targets(targets: Tensor) -> Tensor:
    """Classes are int64; what other tasks learn from stays as it is."""
    return targets.long() if targets.ndim == 1 and not targets.is_floating_point() else targets


def _moments_of_files(train: BatchDataset) -> Moments:
    each = max(train[0][0].nbytes, 1)
    count = min(len(train), max(MOMENTS_BYTES // each, 1))
    return moments(train.gather(torch.arange(count) * len(train) // count)[0])


def _num_classes(options: MappedOptions, sets: Sequence[MappedDataset]) -> int:
    """Classes of whole numbers `(N,)`, else the numbers in a target."""
    train = sets[0]
    if train.targets.ndim > 1 or train.targets.dtype.kind == "f":
        return options.num_classes or int(np.prod(train.targets.shape[1:], dtype=int))
    counter = ClassCounter()
    for dataset in sets:
        for start in range(0, len(dataset), CHUNK):
            counter.add(dataset.targets[start : start + CHUNK], str(dataset.paths[1]), start)
    highest = counter.highest
    number = options.num_classes or len(options.classes) or counter.count(SET_NUM_CLASSES)
    if highest >= number:
        raise InputError(
            "data.kwargs.num_classes",
            given=number,
            expected=f"more than the highest target {highest}",
        )
    return number
