"""Data sets as the loader of data sets gives them, or why it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import ArrayDataset, Datasets, load_datasets
from tests.support.idx_files import write_idx


def load(dataset: str, root: Path | None = None, *, seed: int = 0, **options: Any) -> Datasets:
    config = DataConfig(dataset=dataset, root=None if root is None else str(root), **options)
    return load_datasets(config, seed=seed)


def refusal(dataset: str, root: Path | None = None, **options: Any) -> str:
    return refusal_of(lambda: load(dataset, root, **options))


def refusal_of(call: Callable[[], object]) -> str:
    """The message of the InputError that a call ends with."""
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def arrays(data: Datasets) -> dict[str, NDArray[Any]]:
    assert isinstance(data.train, ArrayDataset)
    assert isinstance(data.test, ArrayDataset)
    return {
        "train_images": data.train.inputs.numpy(),
        "train_labels": data.train.targets.numpy(),
        "test_images": data.test.inputs.numpy(),
        "test_labels": data.test.targets.numpy(),
    }


def write_four(folder: Path, **given: NDArray[Any]) -> Path:
    """Four IDX files, of 7 and 5 samples unless given."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 7), ("test", 5)):
        defaults = {
            "images": random.integers(0, 256, (count, 6, 5)).astype("u1"),
            "labels": (np.arange(count) % 3).astype("u1"),
        }
        for kind, default in defaults.items():
            write_idx(folder / f"{split}-{kind}", given.get(f"{split}_{kind}", default))
    return folder
