"""Samples held out of the training set: a pure function of a seed and of the samples' classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from configs.schema import DataConfig
from data.loading.order import derive_seed
from data.samples import ArrayDataset, BatchDataset, Datasets, MapDataset

log = logging.getLogger("convoy")

Indices = NDArray[np.int64]
TEST_SEED = 0
"""Runs of different seeds are compared on one test set."""


@runtime_checkable
class Divisible(Protocol):
    """A data set that can make one of some of its samples, and knows how to read them."""

    def part(self, indices: Indices, *, training: bool) -> MapDataset:
        """The samples of int64 `indices` `(M,)`, read as for training or as for evaluation."""
        ...


class Subset:
    """Some samples of a data set that is read sample by sample.

    Args:
        base: All samples.
        indices: int64 `(M,)`.
    """

    def __init__(self, base: MapDataset, indices: Indices) -> None:
        self.base = base
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.base[int(self.indices[index])]

    @property
    def labels(self) -> Indices | None:
        labels = labels_of(self.base)
        return None if labels is None else labels[self.indices]

    def part(self, indices: Indices, *, training: bool) -> Subset:
        return type(self)(self.base, self.indices[indices])


class GatheredSubset(Subset):
    """The same of a data set that reads a batch in one go."""

    base: BatchDataset

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the subset's samples `indices` `(B,)`."""
        return self.base.gather(torch.from_numpy(self.indices[indices.numpy()]))


def cut(data: Datasets, config: DataConfig, seed: int) -> Datasets:
    """What `data.test` and `data.validation` hold out of the training set, as sets of their own.

    Args:
        data: As a reader gave it; without test samples if it found none.
        config: How many samples to hold out.
        seed: The run's, for the validation set.

    Raises:
        InputError: If there is nothing to evaluate on, a set is there already, or nothing is left.
    """
    if len(data.test):
        _refuse_second("data.test", config.test, "test")
    elif not config.test:
        raise InputError(
            "data.test",
            given=config.test,
            expected=f"how much of {config.dataset} to test on: it has no test set",
            remedy="Hold out a tenth of the samples with --data.test 0.1.",
        )
    else:
        train, test = _divide(data.train, "data.test", config.test, TEST_SEED)
        data = replace(data, train=train, test=test)
    if data.validation is not None:
        _refuse_second("data.validation", config.validation, "validation")
    elif config.validation:
        train, held_out = _divide(data.train, "data.validation", config.validation, seed)
        data = replace(data, train=train, validation=held_out)
    return data.measured()


def _refuse_second(key: str, amount: float, name: str) -> None:
    if amount:
        raise InputError(
            key,
            given=amount,
            expected=f"0 for a data set that brings a {name} set",
            remedy="Leave the key out to use that one.",
        )


def _divide(data: MapDataset, key: str, amount: float, seed: int) -> tuple[MapDataset, MapDataset]:
    """What stays and what is held out, both in the order of the data set."""
    count = round(amount * len(data)) if isinstance(amount, float) else amount
    if not 1 <= count < len(data):
        raise InputError(
            key,
            given=amount,
            expected=f"1 to {len(data) - 1} of {len(data)} training samples, or such a fraction",
        )
    labels = labels_of(data)
    if labels is None:
        log.info(f"{key}: drawn at random, since targets are not known without reading each sample")
    held_out = hold_out(labels, len(data), count, derive_seed(seed, key))
    stays = np.ones(len(data), dtype=bool)
    stays[held_out] = False
    return _part(data, np.flatnonzero(stays), training=True), _part(data, held_out, training=False)


def hold_out(labels: Indices | None, num_samples: int, count: int, seed: int) -> Indices:
    """Indices of the samples to hold out, ascending, int64 `(count,)`.

    Each class gives its share, rounded up or down: the largest remainders are rounded up, of equal
    ones those of lower classes. Which samples of a class it gives is drawn by `seed`.

    Args:
        labels: Class of every sample `(N,)`; None: there are no classes.
        num_samples: N.
        count: How many samples, at most N.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    order: Indices = torch.randperm(num_samples, generator=generator).numpy()
    if labels is None:
        return np.sort(order[:count])
    classes, members = np.unique(labels, return_inverse=True)
    sizes = np.bincount(members, minlength=len(classes))
    shares, remainders = np.divmod(count * sizes, num_samples)
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    by_class = order[np.argsort(members[order], kind="stable")]
    starts = np.cumsum(sizes) - sizes
    return np.sort(
        np.concatenate(
            [by_class[start : start + n] for start, n in zip(starts, shares, strict=True)]
        )
    )


def labels_of(data: MapDataset) -> Indices | None:
    """The class of every sample if a data set knows them without reading it, `labels` or `targets`
    as whole numbers `(N,)`; else None."""
    for name in ("labels", "targets"):
        found = getattr(data, name, None)
        if not isinstance(found, Tensor | np.ndarray | Sequence) or len(found) != len(data):
            continue
        try:
            values = np.asarray(found)
        except (TypeError, ValueError, RuntimeError):
            continue
        if values.ndim == 1 and values.dtype.kind in "iu":
            return values.astype(np.int64)
    return None


def known_labels(data: Any) -> Indices | None:
    """The same, found also in what torch's own data sets hold, and in lists of samples."""
    if isinstance(data, torch.utils.data.Subset):
        labels = known_labels(data.dataset)
        return None if labels is None else labels[np.asarray(data.indices)]
    if isinstance(data, torch.utils.data.TensorDataset):
        values = data.tensors[-1]
        whole = values.ndim == 1 and not values.is_floating_point()
        return values.cpu().numpy().astype(np.int64) if whole else None
    if isinstance(data, list):
        targets = [sample[1] for sample in data if isinstance(sample, tuple) and len(sample) == 2]
        whole = len(targets) == len(data) and all(isinstance(target, int) for target in targets)
        return np.array(targets, dtype=np.int64) if whole else None
    return labels_of(data)


def _part(data: MapDataset, indices: Indices, *, training: bool) -> MapDataset:
    if isinstance(data, ArrayDataset):
        chosen = torch.from_numpy(indices)
        return ArrayDataset(*data.gather(chosen))
    if isinstance(data, Divisible):
        return data.part(indices, training=training)
    return (GatheredSubset if isinstance(data, BatchDataset) else Subset)(data, indices)
