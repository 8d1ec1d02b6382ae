"""Normalisation is the formula, to the accuracy of its type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.datasets import ArrayDataset, Datasets
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
