"""Data sets of the catalogue, from their files to tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from configs.errors import InputError
from configs.schema import DataConfig
from data.catalogue.acquire import acquire, verify_published
from data.catalogue.cifar import read_cifar
from data.catalogue.dataset_facts import DatasetFacts
from data.formats.idx import read_idx
from data.formats.idx_folder import pair_up
from data.options import refuse_options
from data.samples import ArrayDataset, Datasets, moments_of_array


def load_published(facts: DatasetFacts, config: DataConfig) -> Datasets:
    """A data set of the catalogue, which must be on this machine unless it may be downloaded.

    Raises:
        InputError: For files that are missing, broken or (data.verify) not the published ones.
    """
    refuse_options(config)
    paths = acquire(facts, config.root, download=config.download)
    read = _read_cifar if facts.cifar_labels else _read_idx
    data = read(facts, paths, config.verify)
    known = {"mean": facts.mean, "std": facts.std} if facts.mean else {"measure": moments_of_array}
    return replace(
        data, num_classes=len(facts.classes), scale=255.0, classes=facts.classes, **known
    )


def _read_idx(facts: DatasetFacts, paths: dict[str, Path], verify: bool) -> Datasets:
    arrays = {}
    for role, path in paths.items():
        digest = facts.files[role].sha256 if verify else None
        arrays[role] = _straighten(facts, role, read_idx(path, sha256=digest))
        if verify and digest is None:
            verify_published(path, facts.files[role])
    data = pair_up(arrays, paths, classes_known=True)
    if data.num_classes > len(facts.classes) or data.input_shape != facts.input_shape:
        raise InputError(
            f"the files in {paths['train_images'].parent} are not {facts.name}",
            given=f"shape {data.input_shape}, labels up to {data.num_classes - 1}",
            expected=f"shape {facts.input_shape}, labels up to {len(facts.classes) - 1}",
            remedy="Use --data.dataset idx for files of your own.",
        )
    return data


def _straighten(facts: DatasetFacts, role: str, array: NDArray[Any]) -> NDArray[Any]:
    """Rows before columns, and labels from 0 on."""
    if role.endswith("images") and facts.transposed and array.ndim == 3:
        return np.ascontiguousarray(array.transpose(0, 2, 1))
    if role.endswith("labels") and facts.first_label:
        return array.astype(np.int64) - facts.first_label
    return array


def _read_cifar(facts: DatasetFacts, paths: dict[str, Path], verify: bool) -> Datasets:
    parts: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {"train": [], "test": []}
    for role, path in paths.items():
        found = read_cifar(
            path,
            label_bytes=facts.cifar_labels,
            num_classes=len(facts.classes),
            sha256=facts.files[role].sha256 if verify else None,
        )
        parts[role.partition("_")[0]].append(found)
    train, test = (
        ArrayDataset(
            torch.from_numpy(np.concatenate([images for images, _ in split])),
            torch.from_numpy(np.concatenate([labels for _, labels in split]).astype(np.int64)),
        )
        for split in parts.values()
    )
    return Datasets(
        train=train, test=test, input_shape=facts.input_shape, num_classes=len(facts.classes)
    )
