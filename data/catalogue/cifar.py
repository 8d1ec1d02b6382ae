"""CIFAR's binary version: records of one or two label bytes and 3,072 pixels, plane by plane.

The format (https://www.cs.toronto.edu/~kriz/cifar.html): CIFAR-10 has one label byte, CIFAR-100 a
coarse and a fine one; then 1,024 red, green and blue values each, row by row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.formats.idx import digest_error

SHAPE = (3, 32, 32)
PIXELS = 3072


def read_cifar(
    path: Path, *, label_bytes: int, num_classes: int, sha256: str | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read one file.

    Args:
        path: A .bin file.
        label_bytes: Label bytes of a record; the last one is the label.
        num_classes: Labels must be below it.
        sha256: Hex digest the file must have, or None.

    Returns:
        Images uint8 `(N, 3, 32, 32)` and labels uint8 `(N,)`.

    Raises:
        InputError: If it cannot be read, is truncated, or is another file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    record = label_bytes + PIXELS
    if len(content) % record or not content:
        raise InputError(
            f"{path} is truncated or not CIFAR's binary version: bytes",
            given=len(content),
            expected=f"a multiple of {record}",
            remedy="Fetch the file again.",
        )
    if sha256 is not None:
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise digest_error(path, found, sha256)
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = records[:, label_bytes - 1]
    if labels.max() >= num_classes:
        raise InputError(
            f"{path}: label",
            given=int(labels.max()),
            expected=f"below {num_classes}",
            remedy="Fetch the file again.",
        )
    return records[:, label_bytes:].reshape(-1, *SHAPE), labels
