"""Loading the data of a run on every rank, after one process per node has acquired it."""

from __future__ import annotations

from configs.schema import RunConfig
from data.catalogue.acquire import acquire
from data.catalogue.catalog import CATALOG
from data.datasets import Datasets, load_datasets
from trainer.ranks.collectives import raise_on_all_ranks
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


def _acquire(config: RunConfig, runtime: Runtime) -> None:
    """Have the files on this node, which all of its ranks then read."""
    if runtime.local_rank == 0 and config.data.dataset in CATALOG:
        facts = CATALOG[config.data.dataset]
        acquire(facts, config.data.root, download=config.data.download)
