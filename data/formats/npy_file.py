"""One array of numbers in NumPy's format, from anybody."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError, one_line
from data.formats.html_page import SNIFFED, refuse_page


def load_npy(source: Path | bytes, name: str) -> NDArray[Any]:
    """The array in a file, mapped into memory and read-only, or in the bytes of one.

    Raises:
        InputError: If it is truncated or none; nothing in it is unpickled.
    """
    try:
        if isinstance(source, bytes):
            array = np.load(io.BytesIO(source), allow_pickle=False)
        else:
            array = np.load(source, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # its header is parsed as Python, which raises what it likes
        if isinstance(source, Path) and source.is_file():
            with source.open("rb") as file:
                refuse_page(file.read(SNIFFED), name)
        reason = one_line(error)
        raise InputError(
            f"{name} cannot be read as NPY ({reason})",
            expected="one array of numbers, as numpy.save writes it",
        ) from None
    if not isinstance(array, np.ndarray):
        raise InputError(name, given="an archive of arrays", expected="one array (.npy)")
    return array
