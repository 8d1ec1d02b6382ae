"""Windows of tokens: a function of the index, and over a set every token once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from configs.errors import InputError
from configs.schema import DataConfig
from data.collate import IGNORED
from data.datasets import Datasets, load_datasets
from data.formats.tokens import TokenWindows
from data.loading.loader import build_loader
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import BatchDataset
from data.vocabulary import Vocabulary

FAR = (1 << 24) + 1
"""float32 has no such number: it would become its neighbour."""


def load(root: Path, *, test: float = 0, validation: float = 0, **kwargs: Any) -> Datasets:
    config = DataConfig(
        dataset="tokens", root=str(root), kwargs=kwargs, test=test, validation=validation
    )
    return load_datasets(config, seed=0)


def folder(root: Path, vocabulary: Any = 1000, dtype: str = "uint16", **parts: Any) -> Path:
    for name, tokens in parts.items():
        np.asarray(tokens).astype(dtype).tofile(root / f"{name}.bin")
    header = {"dtype": dtype, "vocabulary": vocabulary}
    (root / "tokens.json").write_text(json.dumps(header))
    return root


def windows(tokens: NDArray[Any], context: int, stride: int, **kwargs: Any) -> TokenWindows:
    vocabulary = Vocabulary(kind="unknown", size=1000, separator=kwargs.pop("separator", None))
    return TokenWindows(tokens, vocabulary, context=context, stride=stride, **kwargs)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(2, 60), context=st.integers(1, 20))
def test_every_token_but_the_first_is_a_target_once(count: int, context: int) -> None:
    """Law: as many windows as that takes, each target behind its input."""
    tokens = np.arange(count, dtype=np.uint16)
    data = windows(tokens, context, context)
    inputs, targets = data.gather(torch.arange(len(data)))
    assert inputs.shape == targets.shape == (len(data), context)
    counted = targets != IGNORED
    assert targets[counted].tolist() == list(range(1, count))
    assert torch.equal(inputs[counted] + 1, targets[counted])
    assert inputs[~counted].sub(count - 1).clamp(min=0).sum() == 0
    assert len(data) == -(-(count - 1) // context)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 60), context=st.integers(1, 20), data=st.data())
def test_windows_that_overlap_leave_nothing_out(
    count: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    found = windows(np.arange(count, dtype=np.uint16), context, stride)
    seen = {int(token) for i in range(len(found)) for token in found[i][1] if token != IGNORED}
    assert seen == set(range(1, count))
    assert [int(found[i][0][0]) for i in range(len(found))] == [
        i * stride for i in range(len(found))
    ]


def test_a_batch_is_the_windows_asked_for_in_their_order(tmp_path: Path) -> None:
    """Law: gather(i) are the samples i, from the file, repeated and in any order, none for none."""
    data = load(folder(tmp_path, train=range(100), test=range(9)), context=8).train
    assert isinstance(data, BatchDataset)
    indices = torch.tensor([3, 0, 3, 12])
    inputs, targets = data.gather(indices)
    for row, index in enumerate(indices.tolist()):
        assert torch.equal(inputs[row], data[index][0])
        assert torch.equal(targets[row], data[index][1])
    assert inputs[0].tolist() == list(range(24, 32))
    assert inputs.dtype == targets.dtype == torch.int64
    assert [part.shape for part in data.gather(torch.tensor([], dtype=torch.int64))] == [(0, 8)] * 2


def test_neighbours_beyond_the_whole_numbers_of_float32_stay_apart(tmp_path: Path) -> None:
    tokens = [FAR, FAR + 2, 5]
    data = load(folder(tmp_path, FAR + 3, "uint32", train=tokens, test=tokens), context=2)
    inputs, targets = data.train[0]
    assert (inputs.tolist(), targets.tolist()) == ([FAR, FAR + 2], [FAR + 2, 5])
    assert (data.num_classes, data.input_shape, data.dtype) == (FAR + 3, (2,), "int64")


@pytest.mark.parametrize("name", ["stream", "evaluation"])
def test_the_model_gets_ids_as_they_are(name: str, tmp_path: Path) -> None:
    """Law: through loader and normalisation, from host memory; nothing turns them into floats."""
    tokens = FAR + 2 * np.arange(40)
    data = load(folder(tmp_path, FAR + 80, "uint32", train=tokens, test=tokens), context=4)
    plan = Plan(
        num_samples=len(data.train),
        global_batch_size=5,
        micro_batch_size=None,
        rank=0,
        world_size=1,
        seed=0,
    )
    device = torch.device("cpu")
    loader = build_loader(DataConfig(), data.train, data.held_out, plan=plan, device=device)
    if name == "stream":
        batch, indices = next(loader.stream(0)), plan.samples(0)
    else:
        batch, indices = next(loader.evaluation("test", 5, 0, 1))[1], list(range(5))
    inputs = Normalize(data, device)(batch.inputs)
    assert inputs.dtype == torch.int64
    assert inputs[:, 0].tolist() == [FAR + 8 * index for index in indices]


def test_the_first_token_of_a_document_is_not_learned_from_another_document() -> None:
    tokens = np.array([1, 2, 9, 3, 4, 9, 5], np.uint16)
    apart = windows(tokens, 6, 6, separator=9)[0]
    assert apart[0].tolist() == [1, 2, 9, 3, 4, 9]
    assert apart[1].tolist() == [2, 9, IGNORED, 4, 9, IGNORED]
    joined = windows(tokens, 6, 6, separator=9, join=True)[0]
    assert joined[1].tolist() == [2, 9, 3, 4, 9, 5]


def test_a_file_is_mapped_again_in_a_worker_and_not_sent(tmp_path: Path) -> None:
    """Law: a pickle holds the path, whatever the file's size, and gives the same windows."""
    data = load(folder(tmp_path, train=range(50_000), test=range(9)), context=8).train
    content = pickle.dumps(data)
    assert len(content) < 2000
    again = pickle.loads(content)
    assert isinstance(data, BatchDataset)
    for found, expected in zip(
        again.gather(torch.arange(99)), data.gather(torch.arange(99)), strict=True
    ):
        assert torch.equal(found, expected)


def test_parts_have_the_names_of_other_formats(tmp_path: Path) -> None:
    """A validation part alone is what there is to test on; both are both."""
    data = load(folder(tmp_path, train=range(99), val=range(50)), context=8)
    assert (len(data.train), len(data.test), data.validation) == (13, 7, None)
    folder(tmp_path, train=range(99), val=range(50), test=range(20))
    data = load(tmp_path, context=8, stride=4)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 7, 3)


def test_windows_can_be_held_out(tmp_path: Path) -> None:
    """Law: together they are the windows of the file, none twice."""
    data = load(folder(tmp_path, train=range(801)), context=8, test=0.2, validation=10)
    parts = [data.train, data.test, data.validation]
    starts = [int(part[i][0][0]) for part in parts if part for i in range(len(part))]
    assert sorted(starts) == list(range(0, 800, 8))
    assert len(data.test) == 20


def test_a_text_need_not_be_prepared(tmp_path: Path) -> None:
    text = "one two three four five six\n" * 10
    (tmp_path / "text.txt").write_text(text)
    data = load(tmp_path, text="text.txt", context=16, held_out=0.2)
    vocabulary = data.vocabulary
    assert vocabulary is not None
    assert vocabulary.characters == "".join(sorted(set(text)))
    assert data.num_classes == len(set(text))
    found = [
        token
        for part in (data.train, data.test)
        for i in range(len(part))
        for token in part[i][0].tolist()
    ]
    assert vocabulary.decode(data.train[0][0].tolist()) == text[:16]
    assert len(found) >= len(text) - 2
    assert vocabulary.decode(data.test[0][0].tolist()) == text[224:240]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "tokens.json").unlink(), r"lacks tokens.json.*prepare .*--text"),
        (lambda root: (root / "tokens.json").write_text("[]"), "tokens.json.*dtype.*50257"),
        (
            lambda root: (root / "tokens.json").write_text('{"dtype": "int64", "vocabulary": 9}'),
            "dtype int64",
        ),
        (lambda root: (root / "train.bin").write_bytes(b"123"), "3 bytes.*tokens of uint16"),
        (lambda root: (root / "train.bin").unlink(), "train.bin is missing"),
        (
            lambda root: (root / "tokens.json").write_text(
                '{"dtype": "uint16", "vocabulary": 1000, "tokens": {"train": 7}}'
            ),
            "expected 7 tokens of 2 bytes",
        ),
    ],
)
def test_what_is_no_folder_of_tokens_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    folder(tmp_path, train=range(99), test=range(20))
    change(tmp_path)
    with pytest.raises(InputError, match=words):
        load(tmp_path)


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    """An embedding on a GPU would abort the process without a word of it."""
    data = load(folder(tmp_path, 50, train=range(51), test=range(9)), context=8).train
    with pytest.raises(InputError, match=r"train.bin: token 50: given 50, expected 0 to 49"):
        data[6]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"stride": 300}, "1 to the context"),
        ({"context": 0}, "context"),
        ({"stride": 8, "test": 0.1}, "overlap"),
        ({"text": "none.txt"}, "none.txt"),
    ],
)
def test_options_that_make_no_windows_are_refused(
    kwargs: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder(tmp_path, train=range(999), test=range(999))
    with pytest.raises(InputError, match=words):
        load(tmp_path, **kwargs)
