"""Text files as documents, and documents as tokens to train and to test on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from data.vocabulary import Vocabulary, of_bytes, of_characters, of_file

HELD_OUT = ("validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Texts as tokens."""

    vocabulary: Vocabulary
    parts: dict[str, NDArray[Any]]
    """uint16 or uint32 `(N,)` of train, and of validation and test if they were asked for."""
    documents: int


def encode_files(
    paths: Sequence[Path],
    tokenizer: str,
    *,
    held_out: dict[str, float],
    separator: str | None = None,
    end: str | None = None,
) -> Encoded:
    """Turn text files into tokens.

    Every file is a document, or several where `separator` says so. The last part of each document
    is held out: its tokens come after all those that are trained on.

    Args:
        paths: Files of UTF-8, plain or with the ending .gz.
        tokenizer: bytes, characters, or the path of a tokenizer.json.
        held_out: Which part of each document, such as 0.1, goes to validation and to test.
        separator: A text between two documents.
        end: Name of the token of the tokenizer's file that ends a document.

    Raises:
        InputError: If a file cannot be read or a part would have no tokens.
    """
    documents = [part for path in paths for part in _documents(read_text(path), separator)]
    if not documents:
        raise InputError("text", given=f"{len(paths)} empty files", expected="some text")
    several = len(documents) > 1
    vocabulary = _vocabulary(tokenizer, documents, end, several=several)
    dtype = np.uint16 if vocabulary.size <= 1 << 16 else np.uint32
    found: dict[str, list[NDArray[np.int64]]] = {"train": []}
    found |= {name: [] for name in HELD_OUT if held_out.get(name)}
    for number, document in enumerate(documents):
        for name, text in _cut(document, held_out).items():
            found[name].append(vocabulary.encode(text, f"document {number}"))
            if several:
                found[name].append(np.array([vocabulary.separator], np.int64))
    parts = {name: np.concatenate(pieces).astype(dtype) for name, pieces in found.items()}
    for name, tokens in parts.items():
        if len(tokens) < 2:
            raise InputError(
                f"text of the {name} set", given=f"{len(tokens)} tokens", expected="2 or more"
            )
    return Encoded(vocabulary=vocabulary, parts=parts, documents=len(documents))


def read_text(path: Path) -> str:
    """The text of a file of UTF-8, whose line ends stay what they are.

    Raises:
        InputError: If it cannot be read, with the place of what is no UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start}",
            given=error.object[error.start : error.start + 4],
            expected="text in UTF-8",
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(path), given=str(reason), expected="a text file") from None


def _documents(text: str, separator: str | None) -> list[str]:
    parts = text.split(separator) if separator else [text]
    return [part for part in parts if part]


def _cut(document: str, held_out: dict[str, float]) -> dict[str, str]:
    """The beginning to train on, then what is held out, by name."""
    end, found = len(document), {}
    for name in reversed(HELD_OUT):
        if held_out.get(name):
            start = end - round(held_out[name] * len(document))
            found[name], end = document[start:end], start
    return {"train": document[:end], **found}


def _vocabulary(
    tokenizer: str, documents: Sequence[str], end: str | None, *, several: bool
) -> Vocabulary:
    if tokenizer == "bytes":
        return of_bytes(separator=several)
    if tokenizer == "characters":
        return of_characters(documents, separator=several)
    path = Path(tokenizer).expanduser()
    if not path.is_file():
        raise InputError(
            "tokenizer", given=tokenizer, expected="bytes, characters or a tokenizer.json"
        )
    return of_file(read_text(path), str(path), end, separator=several)
