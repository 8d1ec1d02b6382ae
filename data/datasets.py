"""Data sets by name: what `data.dataset` can be, and how inputs are normalised."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import torch
from torch import Tensor

from configs.errors import InputError
from configs.imports import is_import_path
from configs.schema import DataConfig
from data.catalogue.catalog import CATALOG
from data.catalogue.dataset_facts import DatasetFacts
from data.catalogue.published import load_published
from data.facts import InputFacts
from data.formats.huggingface import load_huggingface
from data.formats.idx_folder import idx_files, load_idx_folder
from data.formats.image_folder import load_image_folder
from data.formats.npy import load_mapped
from data.formats.user import load_user
from data.formats.webdataset import load_shards
from data.samples import ArrayDataset, BatchDataset, Datasets, MapDataset

__all__ = [
    "READERS",
    "ArrayDataset",
    "BatchDataset",
    "Datasets",
    "MapDataset",
    "Normalize",
    "catalog_facts",
    "idx_files",
    "load_datasets",
]

READERS: dict[str, Callable[[DataConfig], Datasets]] = {
    "idx": load_idx_folder,
    "image_folder": load_image_folder,
    "npy": load_mapped,
    "huggingface": load_huggingface,
    "webdataset": load_shards,
}
"""Formats of a user's own files, by name; the catalogue has names of its own."""


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
        return load_user(config, seed)
    if config.dataset in READERS:
        return READERS[config.dataset](config)
    return load_published(catalog_facts(config.dataset), config)


def catalog_facts(name: str) -> DatasetFacts:
    """The catalogue entry of that name, or InputError with the closest one."""
    if name not in CATALOG:
        known = [*CATALOG, *READERS]
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            "data.dataset",
            given=name,
            expected=f"{', '.join(known)} or an import path `package.module:attribute`",
            remedy=f"Did you mean {close[0]!r}?" if close else "",
        )
    return CATALOG[name]
