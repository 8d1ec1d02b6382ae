"""Text becomes tokens, and tokens the same text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import InputError
from data.facts import InputFacts, read_model
from data.formats.text_files import encode_files
from data.formats.token_files import read_header, write_tokens
from data.vocabulary import Vocabulary, of_bytes, of_characters

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(text=TEXTS, separator=st.booleans())
def test_bytes_and_characters_keep_every_text(text: str, separator: bool) -> None:
    """Law: decode(encode(text)) = text, and the lengths of its tokens are its bytes in all."""
    for vocabulary in (of_bytes(separator=separator), of_characters([text], separator=separator)):
        ids = vocabulary.encode(text, "text")
        assert vocabulary.decode(ids.tolist()) == text
        assert 0 <= ids.min() <= ids.max() < vocabulary.size - separator
        lengths = vocabulary.lengths()
        assert lengths is not None
        assert lengths[ids].sum() == len(text.encode())
        assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_separator_stands_for_no_text() -> None:
    vocabulary = of_characters(["ab"], separator=True)
    assert (vocabulary.size, vocabulary.separator) == (3, 2)
    assert vocabulary.decode([0, 2, 1]) == "ab"
    lengths = vocabulary.lengths()
    assert lengths is not None
    assert lengths.tolist() == [1, 1, 0]


def test_a_character_that_is_no_token_is_named() -> None:
    with pytest.raises(InputError, match=r"--prompt: character 2: given 'z'.*3 characters"):
        of_characters(["abc"], separator=False).encode("abz", "--prompt")


def test_tokens_made_elsewhere_have_no_text() -> None:
    vocabulary = Vocabulary.from_json(50257)
    assert (vocabulary.kind, vocabulary.size, vocabulary.lengths()) == ("unknown", 50257, None)
    with pytest.raises(InputError, match="made elsewhere"):
        vocabulary.decode([1])


@pytest.mark.parametrize("content", [{"kind": "runes", "size": 9}, {"kind": "bytes", "size": 9}, 0])
def test_what_is_no_vocabulary_is_refused(content: Any) -> None:
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary.from_json(content)


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_files_become_documents_and_their_ends_are_held_out(kind: str, tmp_path: Path) -> None:
    """Law: the parts of a document are its text, cut at its end; a separator ends each part."""
    first, second = "alpha beta é\n" * 5, "gamma delta\n" * 10
    (tmp_path / "one.txt").write_text(first + "====" + second, encoding="utf-8")
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(b"x" * 40))
    encoded = encode_files(
        [tmp_path / "one.txt", tmp_path / "two.txt.gz"],
        kind,
        held_out={"validation": 0.2, "test": 0.1},
        separator="====",
    )
    vocabulary = encoded.vocabulary
    assert encoded.documents == 3
    documents = {
        name: "".join(
            "|" if token == vocabulary.separator else chr(0) for token in tokens.tolist()
        ).count("|")
        for name, tokens in encoded.parts.items()
    }
    assert documents == {"train": 3, "validation": 3, "test": 3}
    if kind == "characters":  # cuts between characters, so the pieces put together are the text
        pieces = {
            name: [
                vocabulary.decode(piece.tolist())
                for piece in np.split(tokens, np.flatnonzero(tokens == vocabulary.separator) + 1)
            ]
            for name, tokens in encoded.parts.items()
        }
        for number, text in enumerate((first, second, "x" * 40)):
            assert "".join(pieces[name][number] for name in ("train", "validation", "test")) == text
    write_tokens(tmp_path / "made" / "here", encoded)
    found, dtype, totals = read_header(tmp_path / "made" / "here")
    assert found == vocabulary
    assert (dtype, totals) == ("uint16", {name: len(part) for name, part in encoded.parts.items()})
    with pytest.raises(InputError, match="without tokens"):
        write_tokens(tmp_path / "made" / "here", encoded)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"good \xff bad", "byte 5.*UTF-8"), (b"", "empty files"), (b"x", "1 tokens")],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(InputError, match=words):
        encode_files([tmp_path / "text.txt"], "bytes", held_out={})


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    with pytest.raises(InputError, match=r"bytes, characters or a tokenizer.json"):
        encode_files([tmp_path / "text.txt"], "words", held_out={})


def test_without_the_package_a_tokenizer_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizers is not installed.*'.\[text\]'"):
        encode_files([tmp_path / "text.txt"], str(tmp_path / "tokenizer.json"), held_out={})


def byte_level(path: Path, text: str) -> Path:
    """A small tokenizer of GPT-2's kind, trained on a text."""
    package = pytest.importorskip("tokenizers")
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = package.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_of_bytes_keeps_every_text_and_knows_its_bytes(tmp_path: Path) -> None:
    """Law: as for bytes, and its content travels with the tokens and the facts of a run."""
    text = "The cat sat on the mat, naïvely: 猫.\n" * 20
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    file = byte_level(tmp_path / "bpe.json", text)
    encoded = encode_files([tmp_path / "text.txt"], str(file), held_out={"test": 0.5})
    vocabulary = encoded.vocabulary
    ids = vocabulary.encode(text, "text")
    assert len(ids) < len(text) / 2
    assert vocabulary.decode(ids.tolist()) == text
    lengths = vocabulary.lengths()
    assert lengths is not None
    assert lengths[ids].sum() == len(text.encode())
    assert vocabulary.separator == 0
    assert lengths[0] == 0
    write_tokens(tmp_path / "made", encoded)
    assert read_header(tmp_path / "made")[0] == vocabulary
    facts = InputFacts(input_shape=(8,), num_classes=vocabulary.size, vocabulary=vocabulary)
    (tmp_path / "made" / "model.json").write_text(json.dumps(facts.to_json()))
    assert read_model(tmp_path / "made" / "model.json")[0] == facts
