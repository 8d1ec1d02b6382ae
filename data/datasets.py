"""In-memory data sets with vectorised batch access, and user data sets by import path."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from configs.imports import call_with, import_object, is_import_path
from configs.schema import DataConfig
from data.acquire import acquire, verify_published
from data.catalog import CATALOG, ROLES, DatasetFacts
from data.facts import InputFacts
from data.idx import GZIP_MAGIC, read_idx


class MapDataset(Protocol):
    """What a user's data set must offer: a length, and `(input, target)` pairs by index.

    The target is a class (a whole number), or the tensor that another task learns from.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class ArrayDataset:
    """Samples held whole in memory, gathered a batch at a time.

    Args:
        inputs: `(N, ...)`, any dtype; images are uint8 `(N, C, H, W)`.
        targets: `(N,)` int64 classes, or `(N, ...)` for other tasks.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        assert len(inputs) == len(targets)
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """`(inputs[indices], targets[indices])` in two gathers."""
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)

    def to(self, device: torch.device) -> ArrayDataset:
        return ArrayDataset(self.inputs.to(device), self.targets.to(device))

    @property
    def num_bytes(self) -> int:
        return self.inputs.nbytes + self.targets.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasets(InputFacts):
    """A training and a test set, and what a model must know of them."""

    train: MapDataset
    test: MapDataset

    def facts(self) -> InputFacts:
        """The facts alone; the type of inputs held in memory is found from them."""
        known = {item.name: getattr(self, item.name) for item in fields(InputFacts)}
        if not self.dtype and isinstance(self.train, ArrayDataset):
            known["dtype"] = _dtype_name(self.train.inputs)
        return InputFacts(**known)


class Normalize:
    """`(x / scale - mean) / std` in float32, on the device the batch is on.

    Images travel as uint8 and become floats here, once per batch: a quarter of the bytes to copy.
    """

    def __init__(self, data: InputFacts, device: torch.device) -> None:
        shape = (-1, *[1] * (len(data.input_shape) - 1))
        mean = torch.tensor(data.mean, dtype=torch.float64).reshape(shape)
        std = torch.tensor(data.std, dtype=torch.float64).reshape(shape)
        self.factor: Tensor | float = (1.0 / (data.scale * std)).to(torch.float32).to(device)
        self.offset: Tensor | float = (-mean / std).to(torch.float32).to(device)
        if len(data.mean) == 1:  # numbers are a third faster than tensors of one element
            self.factor, self.offset = float(self.factor), float(self.offset)

    def __call__(self, inputs: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalised inputs; written into `out`, a float32 tensor of their shape, if given."""
        if out is None:
            return inputs.to(torch.float32) * self.factor + self.offset
        return out.copy_(inputs).mul_(self.factor).add_(self.offset)


def load_datasets(config: DataConfig, *, seed: int) -> Datasets:
    """The data sets that a config names; catalogue files must have been acquired before.

    Raises:
        InputError: For an unknown name, and for files that are missing, broken or inconsistent.
    """
    if is_import_path(config.dataset):
        return _from_user(config, seed)
    if config.dataset == "idx":
        return _from_idx_folder(config.root)
    return _from_catalog(catalog_facts(config.dataset), config)


def catalog_facts(name: str) -> DatasetFacts:
    """The catalogue entry of that name, or InputError with the closest one."""
    import difflib

    if name not in CATALOG:
        known = [*CATALOG, "idx"]
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            "data.dataset",
            given=name,
            expected=f"{', '.join(known)} or an import path `package.module:attribute`",
            remedy=f"Did you mean {close[0]!r}?" if close else "",
        )
    return CATALOG[name]


def _from_catalog(facts: DatasetFacts, config: DataConfig) -> Datasets:
    paths = acquire(facts, config.root, download=config.download)
    arrays = {}
    for role, path in paths.items():
        digest = facts.files[role].sha256 if config.verify else None
        arrays[role] = read_idx(path, sha256=digest)
        if config.verify and digest is None:
            verify_published(path, facts.files[role])
    data = _pair_up(arrays, paths)
    if data.num_classes > len(facts.classes) or data.input_shape != (1, *facts.image_shape):
        raise InputError(
            f"the files in {paths['train_images'].parent} are not {facts.name}",
            given=f"shape {data.input_shape}, labels up to {data.num_classes - 1}",
            expected=f"shape {(1, *facts.image_shape)}, labels up to {len(facts.classes) - 1}",
            remedy="Use --data.dataset idx for files of your own.",
        )
    return Datasets(
        train=data.train,
        test=data.test,
        input_shape=data.input_shape,
        num_classes=len(facts.classes),
        mean=(facts.mean,),
        std=(facts.std,),
        scale=255.0,
        classes=facts.classes,
    )


def idx_files(root: str | None) -> dict[str, Path]:
    """The four IDX files in a folder, by role.

    Raises:
        InputError: If there is no such folder, or a role has no file or several.
    """
    if root is None:
        raise InputError("data.root", expected="the folder of your IDX files with data.dataset=idx")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError("data.root", given=root, expected="a folder that exists")
    if (folder / "idx").is_dir():
        folder = folder / "idx"
    return _assign_roles(folder)


def _from_idx_folder(root: str | None) -> Datasets:
    """Anybody's four IDX files: shape, classes, mean and standard deviation are found from them."""
    paths = idx_files(root)
    data = _pair_up({role: read_idx(path) for role, path in paths.items()}, paths)
    assert isinstance(data.train, ArrayDataset)
    mean, std, scale = _moments(data.train.inputs)
    return Datasets(
        train=data.train,
        test=data.test,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        mean=mean,
        std=std,
        scale=scale,
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


def _pair_up(arrays: dict[str, NDArray[Any]], paths: dict[str, Path]) -> Datasets:
    """Check that images and labels belong together, and make tensors of them."""
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
        if labels.min() < 0:
            raise InputError(f"{path}: label", given=int(labels.min()), expected="0 or more")
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
        num_classes=int(max(targets[0].max(), targets[1].max())) + 1,
    )


def _channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """(N, H, W) -> (N, 1, H, W); (N, H, W, C) with at most 4 channels -> (N, C, H, W)."""
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[3] <= 4 < images.shape[1]:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return images


def _moments(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean and standard deviation per channel, in units of inputs / scale; exact for uint8."""
    scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
    means, stds = [], []
    for channel in range(inputs.shape[1] if inputs.ndim == 4 else 1):
        values = inputs[:, channel] if inputs.ndim == 4 else inputs
        if values.dtype == torch.uint8:
            counts = torch.bincount(values.reshape(-1), minlength=256).double()
            levels = torch.arange(256, dtype=torch.float64)
            mean = float((counts * levels).sum() / counts.sum())
            var = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        else:
            mean, var = float(values.double().mean()), float(values.double().var(correction=0))
        means.append(mean / scale)
        constant = bool((values == values.reshape(-1)[0]).all())  # nothing to divide by
        stds.append(1.0 if constant else var**0.5 / scale)
    return tuple(means), tuple(stds), scale


PROTOCOL = (
    "a callable (root=..., seed=... if it wants them) that returns data.datasets.Datasets, or a "
    "pair (train, test) of map-style data sets of (input tensor, target); a target is a whole "
    "number, the first then with `num_classes` or `classes`, or a tensor of numbers"
)


def _from_user(config: DataConfig, seed: int) -> Datasets:
    build = import_object("data.dataset", config.dataset)
    if not callable(build):
        raise InputError("data.dataset", given=config.dataset, expected=PROTOCOL)
    made = call_with("data.dataset", build, {}, {"root": config.root, "seed": seed})
    return made if isinstance(made, Datasets) else _from_pair(config.dataset, made)


def _from_pair(name: str, made: Any) -> Datasets:
    """What the pair (train, test) says of itself, or a message that shows the protocol."""
    refusal = InputError(f"data.dataset {name}", given=type(made).__name__, expected=PROTOCOL)
    if not (isinstance(made, Sequence) and len(made) == 2):
        raise refusal
    train, test = made
    classes = getattr(train, "classes", None) or ()
    num_classes = getattr(train, "num_classes", None) or len(classes)
    for part in made:
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__") or not len(part):
            raise refusal
    first = train[0]
    if not isinstance(first, Sequence) or len(first) != 2:
        raise refusal
    try:
        inputs, target = torch.as_tensor(first[0]), torch.as_tensor(first[1])
    except (TypeError, ValueError, RuntimeError):
        raise refusal from None
    if target.ndim or target.is_floating_point():
        num_classes = num_classes or target.numel()  # outputs of the model
    if not num_classes:
        raise refusal
    return Datasets(
        train=train,
        test=test,
        input_shape=tuple(inputs.shape),
        num_classes=int(num_classes),
        scale=255.0 if inputs.dtype == torch.uint8 else 1.0,
        classes=tuple(classes),
        dtype=_dtype_name(inputs),
    )


def _dtype_name(inputs: Tensor) -> str:
    return str(inputs.dtype).removeprefix("torch.")
