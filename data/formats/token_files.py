"""A folder of tokens: a file of whole numbers for each part, and a header that says what they
are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.read_files import parse_json
from data.formats.text_files import Encoded, read_text
from data.vocabulary import TOKENIZER, Vocabulary

HEADER = "tokens.json"
DTYPES = ("uint16", "uint32")
Tokens = NDArray[Any]


def map_tokens(path: Path, dtype: str) -> Tokens:
    """The tokens of a file, mapped into memory, read-only, little-endian.

    Raises:
        InputError: If it cannot be mapped, or does not hold 2 tokens or more.
    """
    width = np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
        if size % width or size < 2 * width:
            raise InputError(
                str(path), given=f"{size} bytes", expected=f"2 or more tokens of {dtype}"
            )
        return np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    except OSError as error:
        raise InputError(
            str(path), given=error.strerror, expected="a file of tokens that can be read"
        ) from None


def read_header(folder: Path) -> tuple[Vocabulary, str, dict[str, int]]:
    """What tokens.json says: the vocabulary, the type of a token, and how many each part has.

    Raises:
        InputError: If it is missing or damaged.
    """
    path = folder / HEADER
    expected = 'such as {"dtype": "uint16", "vocabulary": 50257}'
    if not path.is_file():
        raise InputError(
            f"{folder} lacks {HEADER}",
            expected=expected,
            remedy="convoy prepare --text FILE --root FOLDER makes such a folder of text; "
            "data.kwargs.text names a text file that need not be prepared.",
        )
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        file = folder / TOKENIZER
        given = content["vocabulary"]
        of_file = isinstance(given, dict) and given.get("kind") == "file"
        vocabulary = Vocabulary.from_json(given, read_text(file) if of_file else "")
        dtype = str(content["dtype"])
        totals = {name: int(count) for name, count in content.get("tokens", {}).items()}
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype}")
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} ({type(error).__name__}: {error})", expected=expected) from None
    return vocabulary, dtype, totals


def write_tokens(folder: Path, encoded: Encoded) -> None:
    """Make a folder that `load_tokens` reads; it is complete when the header is there.

    Raises:
        InputError: If the folder has a header already, or cannot be written.
    """
    if (folder / HEADER).exists():
        raise InputError(
            "--root", given=f"{folder} with {HEADER}", expected="a folder without tokens"
        )
    first = next(iter(encoded.parts.values()))
    header = {
        "dtype": first.dtype.name,
        "vocabulary": encoded.vocabulary.to_json(),
        "tokens": {name: len(tokens) for name, tokens in encoded.parts.items()},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tokens in encoded.parts.items():
            little = tokens.astype(tokens.dtype.newbyteorder("<"))
            _write(folder / f"{name}.bin", little.tofile)
        if encoded.vocabulary.kind == "file":
            _write(folder / TOKENIZER, _writer(encoded.vocabulary.file))
        _write(folder / HEADER, _writer(json.dumps(header, indent=2) + "\n"))
    except OSError as error:
        raise InputError(
            "--root", given=f"{folder} ({error.strerror})", expected="a folder to write to"
        ) from None


def _write(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """A file that appears when it is complete; never written through a link."""
    unfinished = path.with_name(f".new-{path.name}")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:
            write(file)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _writer(text: str) -> Callable[[BinaryIO], Any]:
    return lambda file: file.write(text.encode())
