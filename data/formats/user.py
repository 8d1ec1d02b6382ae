"""Data sets of the user's own, by import path."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from configs.errors import InputError
from configs.imports import call_with, import_callable, named, signature_of
from configs.schema import DataConfig
from data.samples import ArrayDataset, Datasets, dtype_name
from data.splits import known_labels
from data.structures import as_tensor_or_none, is_record, outline, split, tensors

log = logging.getLogger("convoy")
PROTOCOL = (
    "a callable (root=..., seed=... if it wants them, and data.kwargs) that returns "
    "data.datasets.Datasets, a pair (train, test) or a triple (train, validation, test) of "
    "map-style data sets of (input tensor, target), a mapping with these names, or one data set "
    "with data.test; a target is a "
    "whole number, the first then with `num_classes` or `classes` unless it knows all labels, or a "
    "tensor of numbers"
)


def load_user(config: DataConfig, seed: int) -> Datasets:
    """What `data.dataset: package.module:attribute` makes of `data.kwargs`.

    Raises:
        InputError: If it is nothing to train on; the message shows the protocol.
    """
    build = import_callable("data.dataset", config.dataset, PROTOCOL)
    offered = {"root": config.root, "seed": seed}
    if config.root is not None and "root" not in named(signature_of(build)):
        log.info("without effect in this run: data.root (takes a data set that asks for `root`)")
    made = call_with("data.dataset", build, dict(config.kwargs), offered)
    if isinstance(made, Datasets):
        for name, part in {"train": made.train, **made.held_out}.items():
            _refuse_stream(f"data.dataset {config.dataset}, {name}", part)
        return made
    if isinstance(made, Mapping) and "train" in made:  # as Hugging Face's DatasetDict
        made = [made[name] for name in ("train", "validation", "test") if name in made]
    return _from_sets(config, made)


def _from_sets(config: DataConfig, made: Any) -> Datasets:
    """What the data sets say of themselves, or a message that shows the protocol."""
    refusal = InputError(
        f"data.dataset {config.dataset}", given=type(made).__name__, expected=PROTOCOL
    )
    if config.test and not isinstance(made, tuple | list):
        made = [made]
    elif not (isinstance(made, Sequence) and len(made) in (2, 3)):
        _refuse_stream(f"data.dataset {config.dataset}", made)
        if isinstance(made, Dataset):
            raise InputError(
                f"data.dataset {config.dataset}",
                given=f"one data set, a {type(made).__name__}",
                expected="(train, test) or (train, validation, test)",
                remedy="Or let `data.test` take the test set out of it, such as a part of 0.1.",
            )
        raise refusal
    _refuse_columns(f"data.dataset {config.dataset}", made)
    classes = getattr(made[0], "classes", None) or ()
    num_classes = getattr(made[0], "num_classes", None) or len(classes)
    made = [_held(part) for part in made]
    train, *others = made
    names = ("train", "validation", "test") if len(made) == 3 else ("train", "test")
    for name, part in zip(names, made, strict=False):
        _check_part(f"data.dataset {config.dataset}, {name}", part)
    sample = train[0]
    where = f"data.dataset {config.dataset}, train[0]"
    held, goal = _take_apart(where, sample, collated=config.collate is not None)
    if goal is not None and (goal.ndim or goal.is_floating_point()):
        num_classes = num_classes or goal.numel()  # outputs of the model
    if goal is not None and not num_classes:
        num_classes = classes_seen(train)
        if not num_classes and not is_record(sample):
            raise InputError(
                f"data.dataset {config.dataset}, number of classes",
                given=f"targets that are whole numbers ({goal.item()} for train[0]), and neither "
                "`num_classes` nor `classes` on the training set",
                expected="one of the two, for so many outputs of the model",
                remedy="Set it: `train.num_classes = 10`. For anything else than classes let "
                "targets be floats.",
            )
    return Datasets(
        train=train,
        **dict(zip(("test", "validation"), reversed(others), strict=False)),
        input_shape=() if held is None else tuple(held.shape),
        num_classes=int(num_classes),
        scale=255.0 if held is not None and held.dtype == torch.uint8 else 1.0,
        classes=tuple(classes),
        dtype="" if held is None else dtype_name(held),
        structure=outline(split(sample)[0]) if held is None else "",
    )


def _refuse_columns(name: str, parts: Sequence[Any]) -> None:
    """Refuse inputs beside their targets, as `fit(x, y)` of other programs takes them.

    Raises:
        InputError: With what puts them together.
    """
    kinds = Tensor, np.ndarray
    pairs = any(isinstance(p, tuple) and all(isinstance(c, kinds) for c in p) for p in parts)
    alone = all(isinstance(part, kinds) for part in parts)
    if pairs or (alone and len({tuple(part.shape[1:]) for part in parts}) > 1):
        raise InputError(
            name,
            given="inputs beside targets",
            expected="data sets, which give both sample by sample",
            remedy="Put tensors together: torch.utils.data.TensorDataset(inputs, targets).",
        )


def _refuse_stream(name: str, part: Any) -> None:
    """Refuse what gives its samples one after the other only, whether it has a length, or a state
    of its own, or not.

    Raises:
        InputError: With the way out.
    """
    if isinstance(part, DataLoader):
        raise InputError(
            name,
            given="a DataLoader",
            expected="the data set in it",
            remedy="Order, batches and workers are the run's: give loader.dataset, and what makes "
            "a batch of samples as data.collate.",
        )
    streams = hasattr(part, "__iter__") and not _has_places(part)
    if isinstance(part, IterableDataset) or streams:
        raise InputError(
            name,
            given=f"{type(part).__name__}, a stream",
            expected="samples by index: __len__ and __getitem__",
            remedy="A sample without a place can neither be shared out among any number of ranks "
            "nor come again after a restart. Read the stream into a list or an array, write it to "
            "files whose samples have places (data.dataset webdataset, parquet, npy or tokens), or "
            "find their places once, as examples/lines.py does.",
        )


def _has_places(part: Any) -> bool:
    """Whether it gives samples by index; torch's base class of data sets only says so."""
    inherited = getattr(type(part), "__getitem__", None) is Dataset.__getitem__
    return hasattr(part, "__getitem__") and not inherited


def _check_part(name: str, part: Any) -> None:
    """Refuse what samples cannot be taken from by index.

    Raises:
        InputError: With what it lacks.
    """
    _refuse_stream(name, part)
    there = {"__len__": hasattr(part, "__len__"), "__getitem__": _has_places(part)}
    lacks = [method for method, has in there.items() if not has]
    if lacks or not len(part):
        raise InputError(
            name,
            given=f"{type(part).__name__} {'without ' + ' and '.join(lacks) if lacks else 'of 0'}",
            expected="a data set with a length and samples by index, and one sample at least",
        )


def _take_apart(where: str, sample: Any, *, collated: bool) -> tuple[Tensor | None, Tensor | None]:
    """The input and the target of a sample, as far as they are one tensor each.

    Raises:
        InputError: With what the sample is, if nothing can be learned from it.
    """
    plain = isinstance(sample, int | float | str | bytes) or sample is None
    inputs, target = (None, None) if plain or not _is_filled(sample) else split(sample)
    held, goal = (as_tensor_or_none(part) for part in (inputs, target))
    if held is None and (inputs is None or not collated) and next(tensors(inputs), None) is None:
        raise InputError(
            where,
            given=outline(sample),
            expected="an (input, target) pair, or a tuple, list, mapping or dataclass, with a "
            "tensor or an array among its inputs",
            remedy="Let the data set give tensors, or turn its samples into a batch of them with "
            "data.collate.",
        )
    return held, goal


def classes_seen(data: Any) -> int:
    """One more than the largest label, where labels are known without reading samples; else 0.

    A part of another set has the classes of the whole.
    """
    while isinstance(data, torch.utils.data.Subset):
        data = data.dataset
    labels = known_labels(data)
    return 0 if labels is None or not len(labels) else int(labels.max()) + 1


def _held(part: Any) -> Any:
    """Tensors in memory as what can be gathered from whole; anything else as it is."""
    if isinstance(part, Tensor | TensorDataset) and len(part):
        return ArrayDataset(*split(part.tensors if isinstance(part, TensorDataset) else part))
    return part


def _is_filled(sample: Any) -> bool:
    return not isinstance(sample, tuple | list) or len(sample) > 0
