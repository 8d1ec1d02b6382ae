"""Pictures of an evaluation are PNG files of what was counted."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import InputError
from launch.using.assess import Mistake
from launch.using.assessment_figures import (
    COLUMNS,
    MOST_NUMBERS,
    confusion_picture,
    mistakes_picture,
    to_picture,
)


@pytest.mark.parametrize("num_classes", [1, 10, MOST_NUMBERS + 1])
def test_a_confusion_matrix_of_any_size_is_drawn(num_classes: int) -> None:
    """The diagonal of a faultless model is the darkest, in the middle of the picture's blues."""
    names = [f"class {number}" for number in range(num_classes)]
    confusion = 7 * np.eye(num_classes, dtype=np.int64)
    drawn = Image.open(io.BytesIO(confusion_picture(confusion, names, "title"))).convert("RGB")
    dark_blue = (8, 48, 107)  # the end of matplotlib's Blues
    assert (np.asarray(drawn) == dark_blue).all(-1).sum() > 100


@pytest.mark.parametrize("count", [0, 1, 6])
def test_a_grid_has_a_place_for_every_mistake(count: int) -> None:
    mistakes = [Mistake(index=i, true=0, predicted=1, confidence=0.9) for i in range(count)]
    inputs = [torch.full((1, 4, 5), 200, dtype=torch.uint8) for _ in mistakes]
    drawn = Image.open(io.BytesIO(mistakes_picture(mistakes, inputs, ["a", "b"], "title")))
    rows = -(-count // COLUMNS)
    assert 300 * rows <= drawn.height < 300 * (rows + 1)


def test_channels_come_last_and_floats_are_stretched() -> None:
    grey = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    assert to_picture(grey).tolist() == [[0, 1, 2], [3, 4, 5]]
    colour = torch.arange(18, dtype=torch.uint8).reshape(3, 2, 3)
    assert to_picture(colour).shape == (2, 3, 3)
    assert to_picture(colour)[0, 1].tolist() == [1, 7, 13]
    stretched = to_picture(colour.float() - 5)
    assert (stretched.min(), stretched.max()) == (0, 1)
    assert to_picture(torch.full((3, 2, 2), 4.0)).max() == 0
    with pytest.raises(InputError, match="images"):
        to_picture(torch.zeros(7))
