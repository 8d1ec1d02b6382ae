"""Data sets from IDX folders, the catalogue and users: what is found, computed and refused."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from configs.errors import InputError
from configs.schema import DataConfig
from data.catalogue.catalog import CATALOG, MNIST
from data.catalogue.dataset_facts import DatasetFacts
from data.datasets import ArrayDataset, Datasets, load_datasets
from data.formats.idx import read_idx, write_idx
from data.normalize import Normalize
from tests.support.data_sets import make_idx

NUMBERS = itertools.count()
CPU = torch.device("cpu")


def load(dataset: str, root: Path | None = None, *, seed: int = 0, **options: Any) -> Datasets:
    config = DataConfig(dataset=dataset, root=None if root is None else str(root), **options)
    return load_datasets(config, seed=seed)


def refusal(dataset: str, root: Path | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(dataset, root, **options)
    return str(caught.value)


def arrays(data: Datasets) -> dict[str, NDArray[Any]]:
    assert isinstance(data.train, ArrayDataset)
    assert isinstance(data.test, ArrayDataset)
    return {
        "train_images": data.train.inputs.numpy(),
        "train_labels": data.train.targets.numpy(),
        "test_images": data.test.inputs.numpy(),
        "test_labels": data.test.targets.numpy(),
    }


def write_four(folder: Path, **given: NDArray[Any]) -> Path:
    """Four IDX files, of 7 and 5 samples unless given."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 7), ("test", 5)):
        defaults = {
            "images": random.integers(0, 256, (count, 6, 5)).astype("u1"),
            "labels": (np.arange(count) % 3).astype("u1"),
        }
        for kind, default in defaults.items():
            write_idx(folder / f"{split}-{kind}", given.get(f"{split}_{kind}", default))
    return folder


# -- any four IDX files --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(9, 7), (1, 1), (28, 3), (7, 6, 3), (5, 5, 1)])
def test_an_idx_folder_gives_its_images_channels_first_and_its_labels(
    shape: tuple[int, ...], suffix: str, tmp_path: Path
) -> None:
    """Law: (N, H, W) becomes (N, 1, H, W), (N, H, W, C) becomes (N, C, H, W), nothing is lost."""
    make_idx(tmp_path, num_train=13, num_test=11, shape=shape, num_classes=4, suffix=suffix)
    data = load("idx", tmp_path)
    found = arrays(data)
    channels = shape[2] if len(shape) == 3 else 1
    assert data.input_shape == (channels, *shape[:2])
    for split, count in (("train", 13), ("test", 11)):
        images = read_idx(tmp_path / f"{split}-images-idx3-ubyte{suffix}")
        expected = images[:, None] if len(shape) == 2 else images.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(found[f"{split}_images"], expected)
        labels = read_idx(tmp_path / f"{split}-labels-idx1-ubyte{suffix}")
        np.testing.assert_array_equal(found[f"{split}_labels"], labels)
        assert len(labels) == count
    assert found["train_images"].dtype == np.uint8
    assert found["train_labels"].dtype == np.int64


def test_the_number_of_classes_is_the_highest_label_of_either_set_plus_one(
    tmp_path: Path,
) -> None:
    assert load("idx", write_four(tmp_path / "a")).num_classes == 3
    labels = np.array([0, 9, 0, 0, 0], "i4")
    assert load("idx", write_four(tmp_path / "b", test_labels=labels)).num_classes == 10


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "f4", "f8"])
def test_mean_and_deviation_equal_numpys_per_channel(
    dtype: str, channels: int | None, tmp_path: Path
) -> None:
    """Law: moments are of the training images only, of pixels / 255 where they are bytes."""
    shape = (7, 6, 5) if channels is None else (7, 6, 5, channels)
    values = np.random.default_rng(0).uniform(0, 120, shape)
    values = values + (0 if channels is None else 3 * np.arange(channels))
    images, test = values.astype(dtype), np.full((5, *shape[1:]), 100).astype(dtype)
    data = load("idx", write_four(tmp_path, train_images=images, test_images=test))
    assert data.scale == (255.0 if dtype == "u1" else 1.0)
    floats = images.astype(np.float64) / data.scale
    floats = floats[..., None] if channels is None else floats
    np.testing.assert_allclose(data.mean, floats.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, floats.std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1 / 3])
@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_constant_images_are_centred_and_not_divided_by_nothing(
    dtype: str, value: float, tmp_path: Path
) -> None:
    images = {
        "train_images": np.full((500, 6, 5), value).astype(dtype),
        "test_images": np.full((5, 6, 5), value).astype(dtype),
    }
    labels = np.zeros(500, "u1")
    data = load("idx", write_four(tmp_path, train_labels=labels, **images))
    assert data.std == (1.0,)
    assert isinstance(data.train, ArrayDataset)
    assert Normalize(data, CPU)(data.train.inputs).abs().max() < 1e-6


@pytest.mark.parametrize(
    "names",
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images", "t10k-labels"),
        ("images", "labels", "images_test", "labels_test"),
        ("train_x.idx", "train_y.idx", "val_x.idx", "val_y.idx"),
        ("A-Images", "A-Labels", "TEST-Images", "TEST-Labels"),
        ("train-latest-x", "train-latest-y", "eval-latest-x", "eval-latest-y"),
    ],
)
def test_roles_are_told_by_dimensions_and_by_words_in_the_names(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    write_four(tmp_path / "from")
    (tmp_path / "to").mkdir()
    roles = ("train-images", "train-labels", "test-images", "test-labels")
    for role, name in zip(roles, names, strict=True):
        shutil.copy(tmp_path / "from" / role, tmp_path / "to" / name)
    expected, found = (arrays(load("idx", tmp_path / name)) for name in ("from", "to"))
    for role, array in expected.items():
        np.testing.assert_array_equal(found[role], array)


def test_other_files_in_the_folder_do_no_harm(tmp_path: Path) -> None:
    write_four(tmp_path)
    (tmp_path / "README.md").write_text("# data")
    (tmp_path / ".empty").touch()
    (tmp_path / "archive.gz").write_bytes(gzip.compress(b"something else"))
    (tmp_path / "train-images.gz").write_bytes(
        gzip.compress((tmp_path / "train-images").read_bytes())
    )
    (tmp_path / "folder").mkdir()
    assert len(load("idx", tmp_path).train) == 7


def test_the_files_may_lie_in_a_subfolder_named_idx(tmp_path: Path) -> None:
    write_four(tmp_path / "idx")
    assert len(load("idx", tmp_path).train) == 7
    assert len(load("idx", tmp_path / "idx").train) == 7


WRONG_FILES: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "fewer labels than images": ({"train_labels": np.zeros(6, "u1")}, "train-labels"),
    "more labels than images": ({"test_labels": np.zeros(6, "u1")}, "test-labels"),
    "negative labels": ({"train_labels": np.array([0, -1, 0, 0, 0, 0, 0], "i1")}, "given -1"),
    "float labels": ({"test_labels": np.zeros(5, "f4")}, "whole numbers"),
    "labels in two dimensions": ({"train_labels": np.zeros((7, 1), "u1")}, "train-labels"),
    "images in one dimension": ({"train_images": np.zeros(7, "u1")}, "train-images"),
    "images of no dimension": ({"train_images": np.array(7, "u1")}, "train-images"),
    "another shape in testing": ({"test_images": np.zeros((5, 6, 4), "u1")}, "(1, 6, 5)"),
    "another type in testing": ({"test_images": np.zeros((5, 6, 5), "f4")}, "float32"),
    "no training samples": (
        {"train_images": np.zeros((0, 6, 5), "u1"), "train_labels": np.zeros(0, "u1")},
        "at least one",
    ),
    "no test samples": (
        {"test_images": np.zeros((0, 6, 5), "u1"), "test_labels": np.zeros(0, "u1")},
        "at least one",
    ),
    "images without pixels": (
        {"train_images": np.zeros((7, 0, 5), "u1"), "test_images": np.zeros((5, 0, 5), "u1")},
        "empty dimensions",
    ),
}


@pytest.mark.parametrize(("files", "said"), WRONG_FILES.values(), ids=list(WRONG_FILES))
def test_files_that_do_not_belong_together_are_refused(
    files: dict[str, NDArray[Any]], said: str, tmp_path: Path
) -> None:
    message = refusal("idx", write_four(tmp_path, **files))
    assert said in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("role", ["train-images", "train-labels", "test-images", "test-labels"])
def test_a_missing_role_and_two_candidates_are_refused_with_what_was_found(
    role: str, tmp_path: Path
) -> None:
    write_four(tmp_path)
    twin = role.replace("-", "-other-")
    shutil.copy(tmp_path / role, tmp_path / twin)
    assert f"{[role, twin]}" in refusal("idx", tmp_path)
    (tmp_path / role).unlink()
    (tmp_path / twin).unlink()
    message = refusal("idx", tmp_path)
    assert f"'{role.replace('-', '_')}': []" in message
    assert "one file for each role" in message


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"\0\0\x08\x01\0\0\0\x07" + bytes(7))[:-4],
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + b"\xff" * 50,
        b"\x1f\x8b\x08\x00",
        b"\0\0\x08\x01\0\0",
        b"\0\0\x08",
        b"",
    ],
    ids=["cut gzip", "corrupt gzip", "gzip header", "cut header", "three bytes", "empty"],
)
def test_a_broken_file_among_the_four_is_refused(content: bytes, tmp_path: Path) -> None:
    write_four(tmp_path)
    (tmp_path / "train-labels").write_bytes(content)
    assert str(tmp_path) in refusal("idx", tmp_path)


def test_an_idx_root_is_needed_and_must_exist(tmp_path: Path) -> None:
    assert refusal("idx").startswith("data.root: expected")
    assert refusal("idx", tmp_path / "nothing").startswith("data.root: given")
    (tmp_path / "file").touch()
    assert refusal("idx", tmp_path / "file").startswith("data.root: given")


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


def test_a_catalogue_set_that_is_not_here_is_refused_when_it_may_not_be_fetched(
    tmp_path: Path,
) -> None:
    assert "'mnist' is not on this machine" in refusal("mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "closest"), [("mnits", "mnist"), ("fashionmnist", "fashion_mnist"), ("zzz", None)]
)
def test_an_unknown_name_is_answered_with_the_closest_one(name: str, closest: str | None) -> None:
    message = refusal(name)
    assert message.startswith(f"data.dataset: given {name!r}")
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
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The import path of `build` in a new module that holds the classes above."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(build: str) -> str:
        names.append(f"datasets_of_user_{next(NUMBERS)}")
        (tmp_path / f"{names[-1]}.py").write_text(f"{SOURCE}\n{build}\n")
        return f"{names[-1]}:build"

    yield write
    for name in names:
        sys.modules.pop(name, None)


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
    [("", 0), ("seed", 5), ("*, seed, root", 5), ("root='x', **kwargs", 0)],
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
    "build",
    [
        "build = 5",
        "def build(missing): return Points(9), Points(4)",
        "def build(): return None",
        "def build(): return Points(9)",
        "def build(): return Points(9), Points(4), Points(4)",
        "def build(): return {'train': Points(9), 'test': Points(4)}",
        "def build(): return 'ab'",
        "def build(): return 1, 2",
        "def build(): return None, None",
        "def build(): return Points(0), Points(4)",
        "def build(): return Points(9), Points(0)",
        "def build(): return Unnamed(9), Points(4)",
        "def build(): return Nameless(9), Points(4)",
        "def build(): return Stream(), Stream()",
        "def build(): return Unlabelled(9), Unlabelled(4)",
        "def build(): return Words(9), Words(4)",
    ],
)
def test_anything_else_of_the_users_is_refused_with_what_is_expected(
    build: str, user: Callable[[str], str]
) -> None:
    """Law: a data set that cannot be trained on is refused before a step is taken."""
    assert refusal(user(build)).startswith("data.dataset")


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


# -- arrays and normalisation --------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.1307,), (0.3081,)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,), (0.25,)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.uint8, 255.0), (torch.float32, 1.0)])
def test_normalisation_is_the_formula_to_float32_accuracy(
    dtype: torch.dtype,
    scale: float,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Law: (x / scale - mean) / std within 1e-6, whatever the type the batch travels in."""
    if channels == 1 and len(mean) == 3:
        mean, std = mean[:1], std[:1]
    levels = torch.arange(256).reshape(-1, 1, 1, 1).expand(256, channels, 2, 3)
    inputs = levels.to(dtype) if dtype == torch.uint8 else (levels / 255).to(dtype)
    shape = (channels, 2, 3)
    empty = ArrayDataset(inputs[:0], torch.zeros(0, dtype=torch.int64))
    data = Datasets(
        train=empty,
        test=empty,
        input_shape=shape,
        num_classes=2,
        mean=mean,
        std=std,
        scale=scale,
    )
    found = Normalize(data, CPU)(inputs)
    view = (1, -1, 1, 1)
    centre, spread = (np.array(values).reshape(view) for values in (mean, std))
    expected = (inputs.numpy().astype(np.float64) / scale - centre) / spread
    assert found.dtype == torch.float32
    assert found.shape == inputs.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_normalisation_leaves_its_input_alone() -> None:
    inputs = torch.rand(4, 3)
    before = inputs.clone()
    empty = ArrayDataset(inputs, torch.zeros(4, dtype=torch.int64))
    data = Datasets(
        train=empty, test=empty, input_shape=(3,), num_classes=2, mean=(0.5,), std=(2.0,)
    )
    found = Normalize(data, CPU)(inputs)
    assert torch.equal(inputs, before)
    torch.testing.assert_close(found, (before - 0.5) / 2.0)
