"""Loading the data of a run on every rank, after one process per node has acquired it."""

from __future__ import annotations

import torch

from configs.schema import RunConfig
from data.catalogue.acquire import acquire
from data.catalogue.catalog import CATALOG
from data.datasets import Datasets, load_datasets
from data.loading.loader import free_bytes
from trainer.ranks.collectives import max_, raise_on_all_ranks
from trainer.ranks.runtime import Runtime


def load_data(config: RunConfig, runtime: Runtime) -> Datasets:
    """Load training and test set; every rank calls it.

    The first rank of a node looks for the files of a catalogued data set, and downloads them if it
    must and may.

    Raises:
        InputError: On every rank alike, if the data cannot be had on any of them.
    """
    raise_on_all_ranks(runtime, lambda: _acquire(config, runtime))
    return raise_on_all_ranks(runtime, lambda: load_datasets(config.data, seed=config.seed))


def least_free_bytes(runtime: Runtime) -> int | None:
    """Free memory of the GPU that has least of it, None on CPUs; every rank calls it.

    By it all ranks have the data in the same place: with them on some GPUs only, the ranks of those
    would record their steps, and the others not.
    """
    free = free_bytes(runtime.device)
    if free is None:
        return None
    return -int(max_(runtime, torch.tensor(-free, device=runtime.device)))


def _acquire(config: RunConfig, runtime: Runtime) -> None:
    """Have the files on this node, which all of its ranks then read."""
    if runtime.local_rank == 0 and config.data.dataset in CATALOG:
        facts = CATALOG[config.data.dataset]
        acquire(facts, config.data.root, download=config.data.download)
