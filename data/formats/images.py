"""Images from files (IDX, NPY, PNG and others) in the shape and type a trained model takes.

What a file holds is told by its first bytes. Nothing is guessed that could change a prediction:
another size is refused unless resizing was asked for, values are never rescaled, and a picture
becomes uint8 with the model's number of channels (one: luma of ITU-R BT.601, as Pillow's `L`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError
from data.formats.html_page import SNIFFED, refuse_page
from data.formats.idx import DTYPES, GZIP_MAGIC, read_idx
from data.formats.npy_file import load_npy
from data.formats.picture import Picture
from data.formats.reading import Reading

NPY_MAGIC = b"\x93NUMPY"
TYPE_CODES = tuple(DTYPES)
FORMATS = ("auto", "idx", "npy", "png")
TABLES = (".csv", ".parquet")
LAYOUTS = ("NCHW", "NHWC", "CHW", "HWC", "NHW", "HW")
"""Orders of the axes of images that are understood, the likelier of two first."""


class Images(Protocol):
    """Images of one input, opened and checked, read a part at a time."""

    name: str

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Images [start, stop) as `(n, *input_shape)`."""
        ...


def open_images(path: Path, reading: Reading, *, format: str = "auto", name: str = "") -> Images:
    """Open one file and check size and type, reading as little as its format allows.

    Args:
        path: The file. NPY files are mapped into memory, so they may be larger than it.
        reading: What the model takes.
        format: One of FORMATS; auto: told by the first bytes.
        name: How to call it in messages and results; default: the path.

    Raises:
        InputError: If it is missing or damaged, or does not fit the model.
    """
    name = name or str(path)
    if reading.invert and reading.facts.dtype != "uint8":
        raise InputError("--invert", expected=f"a model of uint8 images, not {reading.dtype_name}")
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED)
    except OSError as error:
        raise InputError(name, given=error.strerror, expected="a file of images") from None
    refuse_page(head, name)
    kind = _kind(head) if format == "auto" else format
    if kind == "npy":
        return Stack(name, load_npy(path, name), reading)
    if kind == "idx":
        return Stack(name, read_idx(path), reading)
    if path.suffix.lower() in TABLES:
        raise InputError(
            name,
            given="a table",
            expected="an array (NPY) of the features alone",
            remedy="Save them with numpy.save, as float32 (N, features) in the order of `features` "
            "in the run's model.json.",
        )
    return Picture(name, path, reading)


def batches(
    inputs: Sequence[Images], batch_size: int
) -> Iterator[tuple[list[tuple[str, int]], Tensor]]:
    """All images in order, `batch_size` at a time, whichever input they come from.

    Yields:
        `(name, index within the input)` of each image, and the images `(n, *input_shape)`.
    """
    origins: list[tuple[str, int]] = []
    parts: list[Tensor] = []
    for images in inputs:
        start = 0
        while start < len(images):
            stop = min(len(images), start + batch_size - len(origins))
            parts.append(images.read(start, stop))
            origins += [(images.name, index) for index in range(start, stop)]
            start = stop
            if len(origins) == batch_size:
                yield origins, torch.cat(parts)
                origins, parts = [], []
    if origins:
        yield origins, torch.cat(parts)


class Stack:
    """An array of one image or many."""

    def __init__(self, name: str, array: NDArray[Any], reading: Reading) -> None:
        self.name = name
        self.reading = reading
        _check_dtype(name, array.dtype, reading)
        shape = reading.facts.input_shape
        if array.shape in (shape, (len(array) if array.ndim else 0, *shape)):
            self.layout = ""  # as it is, whatever the axes mean
            array = array[None] if array.shape == shape else array
        else:
            self.layout = find_layout(name, array.shape, reading)
            array = array if "N" in self.layout else array[None]
        if len(array) == 0:
            raise InputError(name, given=f"shape {array.shape}", expected="at least one image")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> Tensor:
        block = self.array[start:stop]
        if self.layout.endswith("HWC"):
            block = block.transpose(0, 3, 1, 2)
        elif self.layout and "C" not in self.layout:
            block = block[:, None]
        # A copy: contiguous, of native byte order, and no longer part of a mapped file.
        images = np.array(block, dtype=block.dtype.newbyteorder("="), order="C")
        return self.reading.finish(torch.from_numpy(images))


def find_layout(name: str, shape: tuple[int, ...], reading: Reading) -> str:
    """The order of the axes in which an array of this shape holds images for the model.

    Raises:
        InputError: If there is none.
    """
    facts = reading.facts
    if len(facts.input_shape) == 3:
        channels, *size = facts.input_shape
        fitting = [
            (layout, axes)
            for layout in LAYOUTS
            if len(layout) == len(shape)
            and (axes := dict(zip(layout, shape, strict=True))).get("C", 1) == channels
            # A picture in colours is likelier than three or four grey ones.
            and not (layout == "NHW" and axes["N"] in (3, 4))
        ]
        for layout, axes in fitting:
            if [axes["H"], axes["W"]] == size:
                return layout
        for layout, axes in fitting:
            if reading.resize and axes["H"] and axes["W"]:
                return layout
        if fitting:
            axes = fitting[0][1]
            raise reading.wrong_size(name, (axes["H"], axes["W"]))
    raise InputError(
        f"{name}: shape",
        given=shape,
        expected=f"(N, {', '.join(map(str, facts.input_shape))}), N inputs of shape "
        f"{facts.input_shape} as in training" + CHANNELS_LAST * (len(facts.input_shape) == 3),
    )


CHANNELS_LAST = "; the channels may also come last, and a single channel may be left out"


def _kind(head: bytes) -> str:
    """Two zeros begin .ico, .tga and .avif files too: IDX has a type and a rank after them."""
    if head.startswith(NPY_MAGIC):
        return "npy"
    is_idx = head[:2] == b"\0\0" and len(head) >= 4 and head[2] in TYPE_CODES and head[3] > 0
    return "idx" if is_idx or head[:2] == GZIP_MAGIC else "png"


def _check_dtype(name: str, found: np.dtype[Any], reading: Reading) -> None:
    """The same type as in training; any float stands for any other, they become float32."""
    wanted = reading.facts.dtype
    if found.name == wanted or (found.kind == "f" and wanted.startswith("float")):
        return
    if not wanted and found.kind in "fiu":
        return
    raise InputError(
        f"{name}: values",
        given=found.name,
        expected=f"{reading.dtype_name}, as in training",
        remedy="Give the values as they were stored: the model normalises them itself.",
    )
