"""Data sets of the user's own, by import path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from configs.errors import InputError
from configs.imports import call_with, import_object
from configs.schema import DataConfig
from data.samples import ArrayDataset, Datasets, dtype_name
from data.splits import labels_of
from data.structures import as_tensor_or_none, is_record, outline, split, tensors

PROTOCOL = (
    "a callable (root=..., seed=... if it wants them, and data.kwargs) that returns "
    "data.datasets.Datasets, a pair (train, test) or a triple (train, validation, test) of "
    "map-style data sets of (input tensor, target), or one of them with data.test; a target is a "
    "whole number, the first then with `num_classes` or `classes`, or a tensor of numbers"
)


def load_user(config: DataConfig, seed: int) -> Datasets:
    """What `data.dataset: package.module:attribute` makes of `data.kwargs`.

    Raises:
        InputError: If it is nothing to train on; the message shows the protocol.
    """
    build = import_object("data.dataset", config.dataset)
    if not callable(build):
        raise InputError("data.dataset", given=config.dataset, expected=PROTOCOL)
    offered = {"root": config.root, "seed": seed}
    made = call_with("data.dataset", build, dict(config.kwargs), offered)
    return made if isinstance(made, Datasets) else _from_sets(config, made)


def _from_sets(config: DataConfig, made: Any) -> Datasets:
    """What the data sets say of themselves, or a message that shows the protocol."""
    refusal = InputError(
        f"data.dataset {config.dataset}", given=type(made).__name__, expected=PROTOCOL
    )
    if config.test and not isinstance(made, tuple | list):
        made = [made]
    elif not (isinstance(made, Sequence) and len(made) in (2, 3)):
        raise refusal
    made = [_held(part) for part in made]
    train, *others = made
    classes = getattr(train, "classes", None) or ()
    num_classes = getattr(train, "num_classes", None) or len(classes)
    for part in made:
        if isinstance(part, IterableDataset):
            raise InputError(
                f"data.dataset {config.dataset}",
                given=f"{type(part).__name__}, a stream",
                expected="samples by index",
                remedy="A stream has no order to shuffle, share out and continue from: read it "
                "into a list or an array first.",
            )
        if not hasattr(part, "__len__") or not hasattr(part, "__getitem__") or not len(part):
            raise refusal
    sample = train[0]
    if isinstance(sample, int | float | str | bytes) or sample is None or not _is_filled(sample):
        raise refusal
    inputs, target = split(sample)
    held, goal = (as_tensor_or_none(part) for part in (inputs, target))
    if held is None and not config.collate and next(tensors(inputs), None) is None:
        raise refusal
    if goal is not None and (goal.ndim or goal.is_floating_point()):
        num_classes = num_classes or goal.numel()  # outputs of the model
    if goal is not None and not num_classes:
        labels = labels_of(train)
        if labels is None and not is_record(sample):
            raise refusal
        num_classes = 0 if labels is None else int(labels.max()) + 1
    return Datasets(
        train=train,
        **dict(zip(("test", "validation"), reversed(others), strict=False)),
        input_shape=() if held is None else tuple(held.shape),
        num_classes=int(num_classes),
        scale=255.0 if held is not None and held.dtype == torch.uint8 else 1.0,
        classes=tuple(classes),
        dtype="" if held is None else dtype_name(held),
        structure=outline(inputs) if held is None else "",
    )


def _held(part: Any) -> Any:
    """Tensors in memory as what can be gathered from whole; anything else as it is."""
    if isinstance(part, Tensor | TensorDataset) and len(part):
        return ArrayDataset(*split(part.tensors if isinstance(part, TensorDataset) else part))
    return part


def _is_filled(sample: Any) -> bool:
    return not isinstance(sample, tuple | list) or len(sample) > 0
