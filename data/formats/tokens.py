"""Tokens in a row, mapped into memory, and windows of them: what a language model learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import InputError, expect
from configs.schema import DataConfig
from data.collate import IGNORED
from data.formats.parts import PartOptions, choose_parts
from data.formats.text_files import encode_files
from data.formats.token_files import HEADER, Tokens, map_tokens, read_header
from data.options import folder_of, read_options
from data.samples import NOTHING, Datasets
from data.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class TokenOptions(PartOptions):
    """Parts are files PART.bin beside tokens.json, unless a text file is named."""

    context: int = 256
    """Tokens of a window."""
    stride: int | None = None
    """Tokens from the start of a training window to that of the next; default: context."""
    join: bool = False
    """Learn the first token of a document from the end of the one before it, too."""
    text: str | None = None
    """A text file in data.root that is turned into tokens here, in memory."""
    tokenizer: str = "characters"
    """Of that text: bytes, characters, or the path of a tokenizer.json."""
    held_out: float = 0.1
    """Of that text: the part at its end that is tested on."""

    def __post_init__(self) -> None:
        expect(self, "data.kwargs.context", self.context >= 1, "1 or more")
        some = self.stride is None or 1 <= self.stride <= self.context
        expect(self, "data.kwargs.stride", some, f"1 to the context, {self.context}")
        expect(self, "data.kwargs.held_out", 0 <= self.held_out < 1, "0 or more, below 1")


class TokenWindows:
    """Windows of tokens, each with the tokens that follow: a function of the index alone.

    Window i begins at token i * stride, so which tokens are in which step follows from the order of
    samples, on any number of ranks. The last window may reach beyond the end: its targets there are
    -100, as is the target of a token that ends a document. With a stride as long as a window every
    token but the first is a target exactly once.

    Args:
        tokens: `(N,)` whole numbers, or the path and the type of a file of them.
        vocabulary: What they are.
        context: Tokens of a window, T.
        stride: Tokens from one window to the next.
        join: Whether the first token of a document is learned from the one before it.
        name: What holds the tokens, for messages.
    """

    def __init__(
        self,
        tokens: Tokens | tuple[Path, str],
        vocabulary: Vocabulary,
        *,
        context: int,
        stride: int,
        join: bool = False,
        name: str = "tokens",
    ) -> None:
        self.source = tokens
        self.tokens = tokens if isinstance(tokens, np.ndarray) else map_tokens(*tokens)
        self.vocabulary = vocabulary
        self.context, self.stride, self.join, self.name = context, stride, join, name
        self.count = 1 + max(-(-(len(self.tokens) - 1 - context) // stride), 0)

    def __reduce__(self) -> tuple[Any, ...]:
        # numpy would pickle the whole file for a worker that is not forked
        options = {key: getattr(self, key) for key in ("context", "stride", "join", "name")}
        return _windows_again, (self.source, self.vocabulary, options)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self.count <= index < self.count:
            raise IndexError(index)
        inputs, targets = self.gather(torch.tensor([index % self.count]))
        return inputs[0], targets[0]

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some windows, int64 `(B, T)` both; what is not there is token 0."""
        found = np.full((len(indices), self.context + 1), IGNORED, np.int64)
        for row, index in zip(found, indices.tolist(), strict=True):
            start = index * self.stride
            piece = self.tokens[start : start + len(row)]
            row[: len(piece)] = piece
        self._check(found, indices)
        inputs, targets = found[:, :-1].copy(), found[:, 1:].copy()
        if self.vocabulary.separator is not None and not self.join:
            targets[inputs == self.vocabulary.separator] = IGNORED
        inputs[inputs == IGNORED] = 0
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def _check(self, found: NDArray[np.int64], indices: Tensor) -> None:
        """Refuse a token that no row of an embedding stands for: a GPU would only abort."""
        size = self.vocabulary.size
        if found.size and found.max() >= size:
            row, place = np.argwhere(found >= size)[0]
            raise InputError(
                f"{self.name}: token {int(indices[row]) * self.stride + int(place)}",
                given=int(found[row, place]),
                expected=f"0 to {size - 1}, for a vocabulary of {size}",
                remedy=f"Correct the size of the vocabulary in {HEADER}, or make the file again.",
            )


def _windows_again(source: Any, vocabulary: Vocabulary, options: dict[str, Any]) -> TokenWindows:
    return TokenWindows(source, vocabulary, **options)


def load_tokens(config: DataConfig) -> Datasets:
    """The tokens in `data.root`: a header and a file for each part, or a text that becomes tokens.

    Raises:
        InputError: If a file is missing or is not what the header says.
    """
    options = read_options(TokenOptions, config)
    sources: dict[str, Tokens | tuple[Path, str]]
    folder = folder_of(config.root, f"{HEADER}, train.bin and test.bin")
    if options.text is not None:
        held_out = {"test": options.held_out}
        encoded = encode_files([folder / options.text], options.tokenizer, held_out=held_out)
        vocabulary, sources = encoded.vocabulary, dict(encoded.parts)
        roles = {name: name for name in sources}
    else:
        vocabulary, dtype, totals = read_header(folder)
        found = choose_parts(
            options,
            lambda name: (folder / f"{name}.bin").is_file(),
            cut_test=config.test > 0,
        ).found
        roles = dict(found)
        sources = {
            role: _source(folder / f"{name}.bin", dtype, totals.get(name)) for role, name in found
        }
    stride = options.stride or options.context
    if stride < options.context and (config.test or config.validation):
        raise InputError(
            "data.kwargs.stride",
            given=stride,
            expected=f"{options.context}, the context, with data.test or data.validation",
            remedy="Windows that overlap would be trained on and held out: prepare the parts with "
            "convoy prepare --text --validation 0.1.",
        )
    sets = {
        role: TokenWindows(
            source,
            vocabulary,
            context=options.context,
            stride=stride if role == "train" else options.context,
            join=options.join,
            name=str(folder / (options.text or f"{roles[role]}.bin")),
        )
        for role, source in sources.items()
    }
    return Datasets(
        train=sets["train"],
        test=sets.get("test", NOTHING),
        validation=sets.get("validation"),
        input_shape=(options.context,),
        num_classes=vocabulary.size,
        dtype="int64",
        vocabulary=vocabulary,
    )


def _source(path: Path, dtype: str, total: int | None) -> tuple[Path, str]:
    if not path.is_file():
        raise InputError(f"{path} is missing", expected=f"tokens of {dtype}, one after the other")
    size, width = path.stat().st_size, np.dtype(dtype).itemsize
    if total is not None and size != total * width:
        raise InputError(
            str(path), given=f"{size} bytes", expected=f"{total} tokens of {width} bytes"
        )
    return path, dtype
