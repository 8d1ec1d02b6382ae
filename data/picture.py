"""Picture files, through Pillow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.errors import InputError
from configs.imports import import_extra
from data.reading import Reading

EIGHT_BIT = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
"""Modes of Pillow that uint8 can hold."""
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
        if facts.input_shape[0] not in (1, 3, 4):
            raise InputError(name, given="a picture", expected=f"{facts.input_shape[0]} channels")
        with self._open() as image:
            rotated = image.getexif().get(0x0112) in ROTATED
            size = image.size if rotated else image.size[::-1]
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(name, given=f"{image.n_frames} frames", expected="one picture")
            if image.mode not in EIGHT_BIT:
                raise InputError(name, given=f"mode {image.mode}", expected="8 bits per channel")
        if size != facts.input_shape[1:] and not reading.resize:
            raise reading.wrong_size(name, size)

    def __len__(self) -> int:
        return 1

    def read(self, start: int, stop: int) -> Tensor:
        ops = import_extra("PIL.ImageOps", "images")
        with self._open() as image:
            image = self._convert(ops.exif_transpose(image))
            values = np.array(image, dtype=np.uint8)
        channels_last = values[..., None] if values.ndim == 2 else values
        images = torch.from_numpy(np.ascontiguousarray(channels_last.transpose(2, 0, 1)))
        return self.reading.finish(images[None])

    def _convert(self, image: Any) -> Any:
        """To the model's channels. What lies under transparent pixels is anybody's guess."""
        channels = self.reading.facts.input_shape[0]
        if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
            image = image.convert("RGBA")
            if channels < 4 and image.getchannel("A").getextrema()[0] < 255:
                raise InputError(
                    self.name,
                    given="transparent pixels",
                    expected="an opaque picture",
                    remedy="Save it on a background of its own.",
                )
            if channels < 4:
                image = image.convert("RGB")
        return image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """The picture; whatever Pillow finds wrong with it is an InputError."""
        pillow = import_extra("PIL.Image", "images")
        try:
            with pillow.open(self.path) as image:
                yield image
        except InputError:
            raise
        except pillow.UnidentifiedImageError:
            raise InputError(
                f"{self.name} is not an image",
                expected="an IDX, NPY or PNG file, or another one that Pillow can read",
            ) from None
        except Exception as error:  # damaged bytes can make a decoder raise almost anything
            raise InputError(
                f"{self.name} cannot be read as a picture ({' '.join(str(error).split())[:200]})"
            ) from None
