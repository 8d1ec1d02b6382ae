"""Data sets by name: what `data.dataset` can be."""

from __future__ import annotations

from collections.abc import Callable

from configs.errors import InputError, did_you_mean
from configs.imports import is_import_path
from configs.schema import DataConfig
from data.catalogue.catalog import CATALOG
from data.catalogue.dataset_facts import DatasetFacts
from data.catalogue.published import load_published
from data.facts import InputFacts, PictureFit
from data.formats.decode import PictureOptions
from data.formats.huggingface import HuggingFaceOptions, load_huggingface
from data.formats.idx_folder import load_idx_folder
from data.formats.image_folder import FolderOptions, load_image_folder
from data.formats.npy import load_mapped
from data.formats.tabular import load_csv, load_parquet
from data.formats.tokens import load_tokens
from data.formats.user import load_user
from data.formats.webdataset import ShardOptions, load_shards
from data.options import read_options
from data.samples import ArrayDataset, BatchDataset, Datasets, MapDataset
from data.splits import cut

__all__ = [
    "READERS",
    "ArrayDataset",
    "BatchDataset",
    "Datasets",
    "MapDataset",
    "catalog_facts",
    "load_datasets",
    "picture_fit",
]

READERS: dict[str, Callable[[DataConfig], Datasets]] = {
    "idx": load_idx_folder,
    "image_folder": load_image_folder,
    "npy": load_mapped,
    "csv": load_csv,
    "parquet": load_parquet,
    "huggingface": load_huggingface,
    "webdataset": load_shards,
    "tokens": load_tokens,
}
"""Formats of a user's own files, by name; the catalogue has names of its own."""
PICTURES: dict[str, type[PictureOptions]] = {
    "image_folder": FolderOptions,
    "huggingface": HuggingFaceOptions,
    "webdataset": ShardOptions,
}
"""Options of the formats that hold pictures of any size."""


def load_datasets(config: DataConfig, *, seed: int) -> Datasets:
    """The data sets that a config names; catalogue files must have been acquired before.

    Raises:
        InputError: For an unknown name, and for files that are missing, broken or inconsistent.
    """
    return cut(_read(config, seed), config, seed)


def _read(config: DataConfig, seed: int) -> Datasets:
    """The sets that are there, before any is cut out of another."""
    if is_import_path(config.dataset):
        return load_user(config, seed)
    if config.dataset in READERS:
        return READERS[config.dataset](config)
    return load_published(catalog_facts(config.dataset), config)


def picture_fit(config: DataConfig, facts: InputFacts) -> PictureFit | None:
    """How the pictures of a run were treated that wrote it down in its config only; reads no data.

    None if its inputs were taken as they are stored.
    """
    if config.dataset not in PICTURES:
        return None
    options = read_options(PICTURES[config.dataset], config)
    pictures = facts.dtype == "uint8" and facts.input_shape == options.input_shape
    return options.fit if pictures else None


def catalog_facts(name: str) -> DatasetFacts:
    """The catalogue entry of that name, or InputError with the closest one."""
    if name not in CATALOG:
        known = [*CATALOG, *READERS]
        raise InputError(
            "data.dataset",
            given=name,
            expected=f"{', '.join(known)} or an import path `package.module:attribute`",
            remedy=did_you_mean(name, known),
        )
    return CATALOG[name]
