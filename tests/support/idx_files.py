"""Files in the format of MNIST."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.formats.idx import DTYPES


def write_idx(path: Path, array: NDArray[Any]) -> None:
    """Write an array as an IDX file, gzip-compressed if the name ends in .gz."""
    big_endian = array.dtype.newbyteorder(">")
    code = next(code for code, dtype in DTYPES.items() if dtype == big_endian)
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + np.ascontiguousarray(array, big_endian).tobytes()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
