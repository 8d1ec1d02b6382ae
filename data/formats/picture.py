"""Picture files, through Pillow."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError
from configs.imports import import_extra
from data.formats.html_page import SNIFFED, refuse_page
from data.formats.reading import Reading, fit

EIGHT_BIT = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
"""Modes of Pillow that uint8 can hold."""
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Modes of Pillow by number of channels."""
ROTATED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


class Picture:
    """A picture file, through Pillow: opened once to be checked, decoded when it is its turn."""

    def __init__(self, name: str, path: Path, reading: Reading) -> None:
        self.name = name
        self.path = path
        self.reading = reading
        facts = reading.facts
        if facts.dtype != "uint8" or len(facts.input_shape) != 3:
            raise InputError(
                name,
                given="a picture",
                expected=f"{reading.dtype_name} of shape {facts.input_shape} as NPY or IDX, as in "
                "training",
            )
        self.channels = facts.input_shape[0]
        if self.channels not in MODES:
            raise InputError(name, given="a picture", expected=f"{self.channels} channels")
        with opened(path, name) as image:
            rotated = image.getexif().get(0x0112) in ROTATED
            size = image.size if rotated else image.size[::-1]
            check_picture(image, name)
        if size != facts.input_shape[1:] and not (reading.resize or facts.fit):
            raise reading.wrong_size(name, size)

    def __len__(self) -> int:
        return 1

    def read(self, start: int, stop: int) -> Tensor:
        with opened(self.path, self.name) as image:
            pixels = to_tensor(image, self.channels, self.name)
        if self.reading.facts.fit is not None:
            pixels = fit(pixels, self.reading.facts.fit)
        return self.reading.finish(pixels[None])


@contextlib.contextmanager
def opened(source: Path | bytes, name: str) -> Iterator[Any]:
    """A picture as Pillow opens it; whatever Pillow finds wrong with it is an InputError."""
    pillow = import_extra("PIL.Image", "images")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except InputError:
        raise
    except pillow.UnidentifiedImageError:
        refuse_page(source[:SNIFFED] if isinstance(source, bytes) else _head(source), name)
        raise InputError(
            f"{name} is not an image",
            expected="an IDX, NPY or PNG file, or another one that Pillow can read",
        ) from None
    except Exception as error:  # damaged bytes can make a decoder raise almost anything
        raise InputError(
            f"{name} cannot be read as a picture ({' '.join(str(error).split())[:200]})"
        ) from None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(SNIFFED)


def check_picture(image: Any, name: str) -> None:
    """Refuse what is not one picture of 8 bits per channel.

    Of an MPO, as phones and drones write them with the ending of a JPEG, the first frame is the
    picture; the others are thumbnails or seen from another eye.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise InputError(name, given=f"{image.n_frames} frames", expected="one picture")
    if image.mode not in EIGHT_BIT:
        raise InputError(name, given=f"mode {image.mode}", expected="8 bits per channel")


def to_tensor(image: Any, channels: int, name: str) -> Tensor:
    """An open picture, turned as its EXIF data say -> uint8 `(channels, H, W)`."""
    ops = import_extra("PIL.ImageOps", "images")
    values = np.array(_convert(ops.exif_transpose(image), channels, name), dtype=np.uint8)
    channels_last = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)))


def _convert(image: Any, channels: int, name: str) -> Any:
    """Convert to the model's channels. What lies under transparent pixels is anybody's guess."""
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels < 4 and image.getchannel("A").getextrema()[0] < 255:
            raise InputError(
                name,
                given="transparent pixels",
                expected="an opaque picture",
                remedy="Save it on a background of its own.",
            )
        if channels < 4:
            image = image.convert("RGB")
    return image.convert(MODES[channels])
