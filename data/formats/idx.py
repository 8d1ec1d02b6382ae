"""Parse and verify IDX files, plain or gzip-compressed.

The format (http://yann.lecun.com/exdb/mnist/): two zero bytes, a type code, the number of
dimensions, one big-endian uint32 per dimension, then the values in C order, big-endian.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.formats.html_page import SNIFFED, refuse_page

DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 22


def read_idx(path: Path, *, sha256: str | None = None) -> NDArray[Any]:
    """Read one IDX file into an array of native byte order.

    Args:
        path: A plain or gzip-compressed file; which one is told by its first bytes.
        sha256: Hex digest the uncompressed content must have, or None.

    Returns:
        The array, with the shape and the dtype that the header gives.

    Raises:
        InputError: For a missing or unreadable file, a wrong header, too few or too many bytes, or
            a content with another digest. Nothing is read past the size the header announces.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
            header, dtype, shape = _read_header(file, path)
            body = _read_body(file, path, dtype.itemsize * math.prod(shape))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", expected="an IDX file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} cannot be read ({error})",
            expected="an IDX file, plain or .gz",
            remedy="Fetch the file again.",
        ) from None
    if sha256 is not None:
        found = hashlib.sha256(header)
        found.update(body)
        if found.hexdigest() != sha256:
            raise digest_error(path, found.hexdigest(), sha256)
    try:
        array = np.frombuffer(body, dtype=dtype).reshape(shape)
    except ValueError as error:
        raise InputError(
            f"{path}: shape",
            given=f"{len(shape)} dimensions",
            expected=f"one that an array can have ({error})",
        ) from None
    return array.astype(dtype.newbyteorder("="), copy=False)


def digest_error(path: Path, found: str, expected: str) -> InputError:
    return InputError(
        f"{path} has another content than the published file: SHA-256",
        given=found,
        expected=expected,
        remedy="Fetch the file again; if it is meant to differ, use --data.dataset idx, or "
        "--data.verify false to train on it under this name.",
    )


def _read_header(file: BinaryIO, path: Path) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        refuse_page(magic + file.read(SNIFFED), str(path))
        raise InputError(
            f"{path} is not an IDX file: its first bytes",
            given=magic.hex(" ") or "nothing",
            expected="00 00, a type code (08, 09, 0b, 0c, 0d, 0e) and the number of dimensions",
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise InputError(
            f"{path} is truncated in its header: bytes",
            given=4 + len(sizes),
            expected=f"{4 + 4 * magic[3]} for {magic[3]} dimensions",
            remedy="Fetch the file again.",
        )
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    return magic + sizes, DTYPES[magic[2]], shape


def _read_body(file: BinaryIO, path: Path, num_bytes: int) -> bytearray:
    """Exactly `num_bytes`, read in chunks so that a lying header cannot exhaust the memory."""
    body = bytearray()
    while chunk := file.read(min(CHUNK_BYTES, num_bytes + 1 - len(body))):
        body += chunk
    if len(body) != num_bytes:
        more = len(body) > num_bytes
        raise InputError(
            f"{path} {'has trailing bytes' if more else 'is truncated'}: values take",
            given=f"{'more than ' if more else ''}{min(len(body), num_bytes)} bytes",
            expected=f"{num_bytes} bytes as its header announces",
            remedy="Fetch the file again.",
        )
    return body
