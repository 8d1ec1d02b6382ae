"""Normalisation is the formula, to the accuracy of its type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import ArrayDataset, Datasets, load_datasets
from data.facts import InputFacts
from data.normalize import Normalize

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.1307,), (0.3081,)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,), (0.25,)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255.0), (torch.float32, 1.0)])
def test_normalisation_is_the_formula_to_float32_accuracy(
    dtype: torch.dtype,
    scale: float,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Law: (x / scale - mean) / std within 1e-6, whatever the type the batch travels in."""
    if channels == 1 and len(mean) == 3:
        mean, std = mean[:1], std[:1]
    levels = torch.arange(256).reshape(-1, 1, 1, 1).expand(256, channels, 2, 3)
    inputs = levels.to(dtype) if dtype == torch.uint8 else (levels / 255).to(dtype)
    shape = (channels, 2, 3)
    empty = ArrayDataset(inputs[:0], torch.zeros(0, dtype=torch.int64))
    data = Datasets(
        train=empty,
        test=empty,
        input_shape=shape,
        num_classes=2,
        mean=mean,
        std=std,
        scale=scale,
    )
    found = Normalize(data, CPU)(inputs)
    view = (1, -1, 1, 1)
    centre, spread = (np.array(values).reshape(view) for values in (mean, std))
    expected = (inputs.numpy().astype(np.float64) / scale - centre) / spread
    assert found.dtype == torch.float32
    assert found.shape == inputs.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_normalisation_leaves_its_input_alone() -> None:
    inputs = torch.rand(4, 3)
    before = inputs.clone()
    empty = ArrayDataset(inputs, torch.zeros(4, dtype=torch.int64))
    data = Datasets(
        train=empty, test=empty, input_shape=(3,), num_classes=2, mean=(0.5,), std=(2.0,)
    )
    found = Normalize(data, CPU)(inputs)
    assert torch.equal(inputs, before)
    torch.testing.assert_close(found, (before - 0.5) / 2.0)


def test_one_number_stands_for_all_and_other_numbers_of_numbers_are_refused() -> None:
    """Law: mean and deviation are one number, or one for each of the first dimension, each."""
    inputs = torch.tensor([[1.0, 4.0]])
    shared = InputFacts(input_shape=(2,), num_classes=2, mean=(1.0,), std=(1.0, 3.0))
    torch.testing.assert_close(Normalize(shared, CPU)(inputs), torch.tensor([[0.0, 1.0]]))
    for shape, key, count in (((1, 4, 4), "mean", 3), ((5,), "std", 3), ((7, 4), "mean", 4)):
        values: dict[str, Any] = {key: (0.5,) * count}
        with pytest.raises(
            InputError, match=f"{key} of inputs .*given '{count} numbers', expected"
        ):
            InputFacts(input_shape=shape, num_classes=2, **values)
    with pytest.raises(InputError, match="numbers above 0"):
        InputFacts(input_shape=(2,), num_classes=2, std=(1.0, 0.0))


@pytest.mark.parametrize("dataset", ["npy", "image_folder", "csv", "huggingface", "webdataset"])
def test_every_format_takes_one_number_and_refuses_what_is_none(
    dataset: str, tmp_path: Path
) -> None:
    """Law: they have these options in common, checked before a file is looked at."""
    for kwargs, message in (
        ({"mean": 0.5}, "both data.kwargs.mean and data.kwargs.std, or neither"),
        ({"mean": 0.5, "std": 0.0}, "numbers above 0"),
        ({"mean": float("nan"), "std": 1.0}, "numbers that are finite"),
        ({"mean": "half", "std": 1.0}, "a number, or a list of numbers"),
    ):
        config = DataConfig(dataset=dataset, root=str(tmp_path), kwargs=kwargs)
        with pytest.raises(InputError, match=message):
            load_datasets(config, seed=0)
