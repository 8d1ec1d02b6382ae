"""Data sets of the catalogue and of users: what is found, computed and refused."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.catalogue.catalog import CATALOG, MNIST
from data.catalogue.dataset_facts import DatasetFacts
from data.datasets import ArrayDataset
from data.formats.idx import read_idx
from tests.support.data_sets import make_idx
from tests.support.idx_files import write_idx
from tests.support.loaded import arrays, load, refusal

CPU = torch.device("cpu")


# -- the catalogue -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Fresh copies of the embedded MNIST."""
    assert MNIST.embedded is not None
    embedded = MNIST.embedded

    def copy(name: str) -> Path:
        return Path(shutil.copytree(embedded, tmp_path_factory.mktemp(name) / "mnist"))

    return copy


def test_mnist_needs_no_network_and_has_the_facts_of_its_entry() -> None:
    data = load("mnist", download=False)
    assert (len(data.train), len(data.test)) == (MNIST.num_train, MNIST.num_test)
    assert data.input_shape == (1, 28, 28)
    assert (data.mean, data.std, data.scale) == (MNIST.mean, MNIST.std, 255.0)
    assert (data.num_classes, data.classes) == (10, MNIST.classes)


@pytest.mark.parametrize("role", ["train_labels", "test_images"])
def test_one_flipped_bit_is_refused_unless_verification_is_off(
    role: str, mnist: Callable[[str], Path]
) -> None:
    """Law: data.verify compares the content with the catalogue's digest."""
    folder = mnist("flipped")
    path = folder / f"{MNIST.files[role].name}.gz"
    array = read_idx(path)
    array.reshape(-1)[array.size // 2] ^= 1
    path.unlink()
    write_idx(path.with_suffix(""), array)
    message = refusal("mnist", folder)
    assert MNIST.files[role].sha256 is not None
    assert MNIST.files[role].sha256 in message
    assert "--data.verify false" in message
    found = arrays(load("mnist", folder, verify=False))[role]
    np.testing.assert_array_equal(found.reshape(array.shape), array)


def test_a_bit_flipped_in_a_compressed_file_is_refused_even_unverified(
    mnist: Callable[[str], Path],
) -> None:
    path = mnist("corrupt") / f"{MNIST.files['test_labels'].name}.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert str(path) in refusal("mnist", path.parent, verify=False)


def test_files_of_another_shape_or_more_classes_are_refused_even_unverified(
    tmp_path: Path,
) -> None:
    def place(name: str, **options: Any) -> Path:
        folder = make_idx(tmp_path / name, **options)
        for kind in ("images-idx3", "labels-idx1"):
            (folder / f"test-{kind}-ubyte").rename(folder / f"t10k-{kind}-ubyte")
        return folder

    assert "(1, 9, 7)" in refusal("mnist", place("shape"), verify=False)
    many = place("classes", shape=(28, 28), num_classes=12)
    assert "labels up to 11" in refusal("mnist", many, verify=False)
    few = place("few", shape=(28, 28), num_classes=4)
    assert load("mnist", few, verify=False).num_classes == 10


def test_without_a_content_digest_a_compressed_file_must_be_the_published_one(
    mnist: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mnist("published")
    path = folder / f"{MNIST.files['test_labels'].name}.gz"
    files = {role: dataclasses.replace(file, sha256=None) for role, file in MNIST.files.items()}
    for role, file in files.items():
        digest = hashlib.sha256((folder / f"{file.name}.gz").read_bytes()).hexdigest()
        files[role] = dataclasses.replace(file, gz_sha256=digest)
    facts: DatasetFacts = dataclasses.replace(MNIST, name="toy", files=files, embedded=None)
    monkeypatch.setitem(CATALOG, "toy", facts)
    assert len(load("toy", folder).test) == 10_000
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    assert files["test_labels"].gz_sha256 in refusal("toy", folder)
    assert len(load("toy", folder, verify=False).test) == 10_000


@pytest.mark.parametrize(
    ("name", "closest"), [("mnits", "mnist"), ("fashionmnist", "fashion_mnist"), ("zzz", None)]
)
def test_an_unknown_name_is_answered_with_the_closest_one_and_all(
    name: str, closest: str | None
) -> None:
    message = refusal(name)
    assert message.startswith(f"data.dataset: given {name!r}")
    assert all(known in message for known in (*CATALOG, "image_folder", "npy", "webdataset"))
    assert (f"Did you mean {closest!r}?" in message) == (closest is not None)


# -- data sets of the user's own -----------------------------------------------------------------

SOURCE = """
import torch
from data.datasets import Datasets

class Points:
    num_classes = 3

    def __init__(self, count, dtype=torch.float32):
        self.count, self.dtype = count, dtype

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((2, 4), index, dtype=self.dtype), index % 3

class Named(Points):
    num_classes = None
    classes = ("a", "b")

class Unnamed(Points):
    num_classes = None

class Unlabelled(Points):
    def __getitem__(self, index):
        return index

class Words(Points):
    def __getitem__(self, index):
        return "word", index % 3

class Nameless(Points):
    num_classes = classes = None

class Broken(Points):
    def __getitem__(self, index):
        raise TypeError("mine")

class Stream:
    num_classes = 3

    def __iter__(self):
        return iter([(torch.zeros(2), 1)])

class LongStream(Stream):
    def __len__(self):
        return 5

class Listed(torch.utils.data.Dataset):  # whose base class only says that it has indices
    def __iter__(self):
        return iter([(torch.zeros(2), 1)])

    def __len__(self):
        return 5

def loader(count):
    return torch.utils.data.DataLoader(Points(count))

class StatefulStream(Stream):
    def state_dict(self):
        return {"shard": 3}

    def load_state_dict(self, state):
        pass
"""


@pytest.fixture
def user(module: Callable[[str], str]) -> Callable[[str], str]:
    """The import path of `build` in a new module that holds the classes above."""
    return lambda build: f"{module(f'{SOURCE}{build}')}:build"


@pytest.mark.parametrize("form", ["Points(9), Points(4)", "[Points(9), Points(4)]"])
def test_a_pair_of_the_users_is_taken_with_the_shape_of_its_samples(
    form: str, user: Callable[[str], str]
) -> None:
    data = load(user(f"def build(): return {form}"))
    assert (len(data.train), len(data.test)) == (9, 4)
    assert (data.input_shape, data.num_classes) == ((2, 4), 3)
    assert (data.mean, data.std, data.scale) == ((0.0,), (1.0,), 1.0)


def test_bytes_of_the_users_are_scaled_like_images(user: Callable[[str], str]) -> None:
    data = load(user("def build(): return Points(9, torch.uint8), Points(4, torch.uint8)"))
    assert data.scale == 255.0


def test_classes_count_where_num_classes_is_missing(user: Callable[[str], str]) -> None:
    data = load(user("def build(): return Named(9), Points(4)"))
    assert (data.num_classes, data.classes) == (2, ("a", "b"))


def test_whole_datasets_of_the_users_are_taken_as_they_are(user: Callable[[str], str]) -> None:
    data = load(
        user(
            "def build(): return Datasets(train=Points(9), test=Points(4), input_shape=(2, 4), "
            "num_classes=7, mean=(0.5,), std=(2.0,), scale=3.0)"
        )
    )
    assert (data.num_classes, data.mean, data.std, data.scale) == (7, (0.5,), (2.0,), 3.0)


@pytest.mark.parametrize(
    ("signature", "expected"),
    [("", 0), ("seed", 5), ("*, seed, root", 5), ("root='x', **kwargs", 0)],  # no seed in **kwargs
)
def test_root_and_seed_are_given_to_those_who_ask(
    signature: str, expected: int, tmp_path: Path, user: Callable[[str], str]
) -> None:
    path = user(
        f"def build({signature}):\n"
        f"    assert locals().get('root', {str(tmp_path)!r}) == {str(tmp_path)!r}\n"
        "    return Points(10 + locals().get('seed', 0)), Points(4)"
    )
    assert len(load(path, tmp_path, seed=5).train) == 10 + expected


def test_options_are_the_keyword_arguments_of_the_users_callable(
    user: Callable[[str], str],
) -> None:
    """Law: data.kwargs win over what is offered, and what the callable lacks is refused."""
    path = user("def build(count, seed): return Points(count + seed), Points(4)")
    assert len(load(path, kwargs={"count": 9}, seed=5).train) == 14
    assert len(load(path, kwargs={"count": 9, "seed": 1}, seed=5).train) == 10
    assert "arguments of build(count, seed)" in refusal(path, kwargs={"cuont": 9})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ("build = 5", "given"),
        ("def build(missing): return Points(9), Points(4)", "missing"),
        ("def build(): return None", "given 'NoneType', expected a callable"),
        ("def build(): return Points(9)", "given 'Points', expected a callable"),
        ("def build(): return Points(9), Points(4), Points(4), Points(4)", "given 'tuple'"),
        (
            "def build(): return Points(9), Points(0), Points(4)",
            ", validation: given 'Points",
        ),
        ("def build(): return {'a': Points(9), 'b': Points(4)}", "given 'dict'"),
        ("def build(): return {'train': Points(9), 'test': Stream()}", ", test: given 'Stream, a"),
        ("def build(): return 'ab'", ", train[0]: given 'str', expected an (input, target) pair"),
        ("def build(): return 1, 2", ", train: given 'int without __len__ and __getitem__'"),
        ("def build(): return None, None", ", train: given 'NoneType without"),
        ("def build(): return Points(0), Points(4)", ", train: given 'Points of 0'"),
        ("def build(): return Points(9), Points(0)", ", test: given 'Points of 0'"),
        ("def build(): return Unnamed(9), Points(4)", ", number of classes: given"),
        ("def build(): return Nameless(9), Points(4)", ", number of classes: given"),
        ("def build(): return Stream(), Stream()", ", train: given 'Stream, a stream'"),
        ("def build(): return Stream()", ": given 'Stream, a stream'"),
        ("def build(): return Points(9), LongStream()", ", test: given 'LongStream, a stream'"),
        ("def build(): return Listed(), Points(4)", ", train: given 'Listed, a stream'"),
        ("def build(): return loader(9), loader(4)", "given 'a DataLoader', expected the data set"),
        ("def build(): return StatefulStream(), Points(4)", "nor come again after a restart"),
        ("def build(): return (point for point in Points(9))", "given 'generator, a stream'"),
        (
            "from data.datasets import Datasets\n"
            "def build(): return Datasets(\n"
            "    train=StatefulStream(), test=Points(4), input_shape=(2,), num_classes=3)",
            ", train: given 'StatefulStream, a stream'",
        ),
        ("def build(): return Unlabelled(9), Unlabelled(4)", ", train[0]: given 'int'"),
        ("def build(): return Words(9), Words(4)", ", train[0]: given '(str, "),
    ],
)
def test_anything_else_of_the_users_is_refused_with_what_is_wrong_with_it(
    build: str, words: str, user: Callable[[str], str]
) -> None:
    """Law: a data set that cannot be trained on is refused before a step is taken, and the message
    names the part, or the sample, and what is wrong with it."""
    message = refusal(user(build))
    assert message.startswith("data.dataset")
    assert words in message


@pytest.mark.parametrize(
    "build",
    [
        "def build(): raise TypeError('mine')",
        "def build(): return Broken(9), Points(4)",
    ],
)
def test_an_error_inside_the_users_code_keeps_its_traceback(
    build: str, user: Callable[[str], str]
) -> None:
    with pytest.raises(TypeError, match="mine"):
        load(user(build))


# -- arrays ---------------------------------------------------------------------------------------


def test_a_gather_is_the_samples_one_by_one() -> None:
    """Law: gather(i) stacks dataset[i], in any order and with repetitions."""
    inputs = torch.arange(24, dtype=torch.uint8).reshape(6, 2, 2)
    dataset = ArrayDataset(inputs, torch.arange(6) * 10)
    for indices in ([3, 0, 3, 5], [], [2]):
        batch, targets = dataset.gather(torch.tensor(indices, dtype=torch.int64))
        assert batch.shape == (len(indices), 2, 2)
        assert targets.tolist() == [int(dataset[i][1]) for i in indices]
        assert all(torch.equal(row, dataset[i][0]) for row, i in zip(batch, indices, strict=True))
    assert dataset.num_bytes == 24 + 6 * 8
    assert len(dataset.to(CPU)) == len(dataset) == 6
