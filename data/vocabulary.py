"""Which text a token stands for: bytes, characters, or what a tokenizer's file says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.imports import import_extra

Ids = NDArray[np.int64]
TOKENIZER = "tokenizer.json"
"""The file with the content of a tokenizer, beside whatever holds the rest of a vocabulary."""
MOST_TOKENIZER_BYTES = 1 << 26
KINDS = ("bytes", "characters", "file", "unknown")
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "[SEP]")
"""Usual names of the token that ends a document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Tokens 0 to size - 1, and how text becomes tokens and tokens become text."""

    kind: str
    """bytes of UTF-8; characters; file: a tokenizer.json of the package tokenizers; unknown: the
    tokens were made elsewhere, and only their number is known."""
    size: int
    separator: int | None = None
    """The token that ends a document, if there is one."""
    characters: str = ""
    """Of kind characters: the one that each token stands for."""
    file: str = ""
    """Of kind file: its content."""

    def __post_init__(self) -> None:
        known = {"bytes": 256, "characters": len(self.characters)}.get(self.kind, self.size)
        if self.kind not in KINDS or not 1 <= known <= self.size < 2**31:
            raise InputError(
                "vocabulary",
                given=f"{self.size} tokens of kind {self.kind!r}",
                expected=f"one of {', '.join(KINDS)}, with a token for each",
            )
        if self.separator is not None and not 0 <= self.separator < self.size:
            raise InputError(
                "separator of the vocabulary",
                given=self.separator,
                expected=f"a token, 0 to {self.size - 1}",
            )

    def encode(self, text: str, where: str) -> Ids:
        """Tokens of a text, `(N,)`.

        Args:
            text: Any text.
            where: What it is, for the message.

        Raises:
            InputError: For a character that is no token, or a vocabulary made elsewhere.
        """
        if self.kind == "bytes":
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        if self.kind == "file":
            return np.array(self._tokenizer().encode(text, add_special_tokens=False).ids, np.int64)
        if self.kind == "unknown":
            raise self._unknown()
        points, known = _points(text), _points(self.characters)
        order = np.argsort(known)
        found = order[np.searchsorted(known[order], points).clip(max=len(known) - 1)]
        wrong = np.flatnonzero(known[found] != points)
        if len(wrong):
            raise InputError(
                f"{where}: character {wrong[0]}",
                given=text[wrong[0]],
                expected=f"one of the {len(known)} characters of the training text",
            )
        ids: Ids = found.astype(np.int64)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; bytes that are no UTF-8 become a mark, a separator nothing.

        Raises:
            InputError: For a vocabulary made elsewhere.
        """
        if self.kind == "file":
            return str(self._tokenizer().decode(list(ids), skip_special_tokens=True))
        own = [token for token in ids if token != self.separator]
        if self.kind == "bytes":
            return bytes(token for token in own if token < 256).decode(errors="replace")
        if self.kind == "unknown":
            raise self._unknown()
        return "".join(self.characters[token] for token in own)

    def lengths(self) -> Ids | None:
        """Bytes of UTF-8 that each token stands for, `(size,)`; None if that cannot be told.

        A tokenizer's file tells them if its tokens are made of bytes, as GPT-2's are.
        """
        found = np.zeros(self.size, np.int64)
        if self.kind == "bytes":
            found[:256] = 1
        elif self.kind == "characters":
            count = len(self.characters)
            found[:count] = [len(character.encode()) for character in self.characters]
        elif self.kind == "file" and _of_bytes(self.file):
            tokenizer = self._tokenizer()
            added = tokenizer.get_added_tokens_decoder()
            for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
                # Each byte is written as one letter of a byte-level token.
                special = number in added
                text = "" if special and added[number].special else token
                found[number] = len(text.encode() if special else text)
        else:
            return None
        return found

    def to_json(self) -> dict[str, Any]:
        """All but the content of a file, which lies beside whatever holds this."""
        return {
            "kind": self.kind,
            "size": self.size,
            "separator": self.separator,
            "characters": self.characters,
        }

    @classmethod
    def from_json(cls, content: Any, file: str = "") -> Self:
        """What `to_json` wrote, or a number: tokens that were made elsewhere.

        Raises:
            KeyError, TypeError, ValueError: If it is something else.
        """
        if isinstance(content, int):
            content = {"kind": "unknown", "size": content}
        separator = content.get("separator")
        return cls(
            kind=str(content["kind"]),
            size=int(content["size"]),
            separator=None if separator is None else int(separator),
            characters=str(content.get("characters", "")),
            file=file,
        )

    def _tokenizer(self) -> Any:
        return read_tokenizer(self.file, "the tokenizer's file")

    def _unknown(self) -> InputError:
        return InputError(
            "text of tokens that were made elsewhere",
            expected="a vocabulary of kind bytes, characters or file in tokens.json",
            remedy="Make the tokens with convoy prepare --text.",
        )


def of_bytes(*, separator: bool) -> Vocabulary:
    return Vocabulary(kind="bytes", size=256 + separator, separator=256 if separator else None)


def of_characters(texts: Iterable[str], *, separator: bool) -> Vocabulary:
    """Every character that occurs, in the order of Unicode."""
    characters = "".join(sorted(set().union(*texts)))
    count = len(characters)
    return Vocabulary(
        kind="characters",
        size=count + separator,
        separator=count if separator else None,
        characters=characters,
    )


def of_file(content: str, where: str, end: str | None, *, separator: bool) -> Vocabulary:
    """The tokens of a tokenizer.json.

    Args:
        content: Of the file.
        where: Its name, for the message.
        end: The token that ends a document; None: the first of `ENDS` that it has.
        separator: Whether such a token is needed.

    Raises:
        InputError: If the package is not installed, the file is no tokenizer or lacks the token.
    """
    tokenizer = read_tokenizer(content, where)
    known = tokenizer.get_vocab(with_added_tokens=True)
    names = ENDS if end is None else (end,)
    number = next((known[name] for name in names if name in known), None)
    if number is None and (separator or end is not None):
        raise InputError(
            f"{where}: the token that ends a document",
            given=end,
            expected=f"a token of its, such as {' or '.join(ENDS)}",
            remedy="Name it with --end_of_text.",
        )
    return Vocabulary(kind="file", size=max(known.values()) + 1, separator=number, file=content)


def read_tokenizer(content: str, where: str) -> Any:
    """A `tokenizers.Tokenizer` of its JSON.

    Raises:
        InputError: If the package is not installed, or the content is something else.
    """
    package = import_extra("tokenizers", "text")
    try:
        return package.Tokenizer.from_str(content)
    except Exception as error:  # the package raises Exception itself
        raise InputError(
            f"{where} ({' '.join(str(error).split())[:120]})",
            expected="a tokenizer.json of the package tokenizers",
        ) from None


def _of_bytes(content: str) -> bool:
    decoder = json.loads(content).get("decoder") or {}
    return bool(decoder.get("type") == "ByteLevel")


def _points(text: str) -> NDArray[np.uint32]:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
