"""The data of a run on every rank, acquired once per node."""

from __future__ import annotations

from configs.schema import RunConfig
from data.catalogue.acquire import acquire
from data.catalogue.catalog import CATALOG
from data.datasets import Datasets, load_datasets
from trainer.ranks.collectives import together
from trainer.ranks.runtime import Runtime


def load_together(config: RunConfig, runtime: Runtime) -> Datasets:
    """Every rank calls it; one process per node looks for the files, and downloads if it must.

    Raises:
        InputError: On every rank alike, if the data cannot be had on any of them.
    """
    together(runtime, lambda: _acquire(config, runtime))
    return together(runtime, lambda: load_datasets(config.data, seed=config.seed))


def _acquire(config: RunConfig, runtime: Runtime) -> None:
    if runtime.local_rank == 0 and config.data.dataset in CATALOG:
        facts = CATALOG[config.data.dataset]
        acquire(facts, config.data.root, download=config.data.download)
