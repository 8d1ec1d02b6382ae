"""Pictures of an evaluation: the confusion matrix, and the mistakes as a grid of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from configs.imports import import_extra
from launch.figure_files import as_text, png
from launch.using.assess import Mistake

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 30
"""Classes up to which every cell shows its count, and every axis all its names."""
COLUMNS = 5


def confusion_picture(confusion: NDArray[np.int64], names: Sequence[str], title: str) -> bytes:
    """A PNG of the confusion matrix: shaded by the fraction of the true class, labelled by
    count."""
    num_classes, names = len(names), [as_text(name) for name in names]
    size = min(max(3.5, 1.6 + 0.45 * num_classes), 14.0)
    figure = _figure(size + 0.6, size)
    axes = figure.add_subplot()
    support = confusion.sum(1, keepdims=True)
    fractions = np.divide(confusion, support, out=np.zeros(confusion.shape), where=support > 0)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="fraction of the true class")
    if num_classes <= MOST_NUMBERS:
        long = max(map(len, names)) > 2
        axes.set_xticks(range(num_classes), names, rotation=45 if long else 0)
        if long:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
                label.set_rotation_mode("anchor")
        axes.set_yticks(range(num_classes), names)
        for row, column in zip(*confusion.nonzero(), strict=True):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(confusion[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(as_text(title), fontsize=10)
    return _png(figure)


def mistakes_picture(
    mistakes: Sequence[Mistake], inputs: Sequence[Tensor], names: Sequence[str], title: str
) -> bytes:
    """A PNG of misclassified images, the most confident first.

    Raises:
        InputError: If the inputs are not images.
    """
    images = [to_picture(item) for item in inputs]
    rows = max(math.ceil(len(images) / COLUMNS), 1)
    figure = _figure(1.7 * COLUMNS, 2.1 * rows + 0.5)
    figure.suptitle(as_text(title if images else f"{title}: none"), fontsize=10)
    for place, (mistake, image) in enumerate(zip(mistakes, images, strict=True)):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        axes.imshow(image, cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(
            f"said {as_text(names[mistake.predicted])} ({mistake.confidence:.1%})\n"
            f"true {as_text(names[mistake.true])}, no. {mistake.index}",
            fontsize=8,
        )
    return _png(figure)


def is_picture(shape: Sequence[int]) -> bool:
    """Whether inputs of this shape can be shown: `(1 or 3, H, W)`."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_picture(inputs: Tensor) -> NDArray[Any]:
    """`(1, H, W)` -> `(H, W)`; `(3, H, W)` -> `(H, W, 3)`, floats stretched to [0, 1].

    Raises:
        InputError: For any other shape.
    """
    if not is_picture(inputs.shape):
        raise InputError(
            "inputs of the model", given=tuple(inputs.shape), expected="images (1 or 3, H, W)"
        )
    if inputs.shape[0] == 1:
        return inputs[0].numpy()
    values = inputs.permute(1, 2, 0).numpy()
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    stretched: NDArray[Any] = (values - low) / (high - low if high > low else 1)
    return stretched


def _figure(width: float, height: float) -> Figure:
    """A figure of its own: no screen, no global state."""
    matplotlib = import_extra("matplotlib.figure", "report")
    figure: Figure = matplotlib.Figure(figsize=(width, height), layout="constrained")
    return figure


def _png(figure: Figure) -> bytes:
    return png(figure, dpi=150, bbox_inches="tight")
