"""Sets cut out of the training set: disjoint, complete, stratified, and a pure function."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import load_datasets
from data.samples import NOTHING, ArrayDataset, Datasets, MapDataset
from data.splits import GatheredSubset, Subset, cut, hold_out, labels_of
from tests.support.data_sets import JITTER, make_arrays, make_idx, make_shards, make_tree

LABELS = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(np.array)


@given(LABELS, st.data())
def test_every_class_gives_its_share_within_one_sample(labels: Any, data: st.DataObject) -> None:
    """Law: `count` samples, ascending, none twice; the same for the same seed."""
    count = data.draw(st.integers(1, len(labels) - 1))
    seed = data.draw(st.integers(0, 2**40))
    held_out = hold_out(labels, len(labels), count, seed)
    assert len(held_out) == count
    assert (np.diff(held_out) > 0).all()
    assert held_out.min() >= 0
    assert held_out.max() < len(labels)
    for label in np.unique(labels):
        share = count * (labels == label).sum() / len(labels)
        assert abs((labels[held_out] == label).sum() - share) < 1
    assert (hold_out(labels, len(labels), count, seed) == held_out).all()


def test_the_seed_draws_which_samples_of_a_class() -> None:
    labels = np.arange(1000) % 10
    first, second = (set(hold_out(labels, 1000, 100, seed).tolist()) for seed in (0, 1))
    assert len(first & second) < 30
    assert len(hold_out(None, 1000, 100, 0)) == 100


def samples_of(data: MapDataset) -> list[bytes]:
    inputs = (torch.as_tensor(data[index][0]) for index in range(len(data)))
    return [part.numpy().tobytes() for part in inputs]


def numbered(count: int) -> ArrayDataset:
    return ArrayDataset(torch.arange(count).float()[:, None], torch.arange(count) % 4)


def whole(count: int = 200, **parts: Any) -> Datasets:
    return Datasets(train=numbered(count), input_shape=(1,), num_classes=4, **parts)


def values(data: MapDataset | None) -> list[int]:
    assert isinstance(data, ArrayDataset)
    return [int(value) for value in data.inputs.flatten()]


@pytest.mark.parametrize("amount", [0.2, 40])
def test_what_is_cut_out_and_what_stays_are_the_training_set(amount: float) -> None:
    config = DataConfig(test=amount, validation=amount)
    found = cut(whole(), config, seed=3)
    parts = [values(part) for part in (found.train, found.validation, found.test)]
    assert sorted(itertools.chain(*parts)) == list(range(200))
    assert [len(part) for part in parts] == ([128, 32, 40] if amount == 0.2 else [120, 40, 40])
    assert all(part == sorted(part) for part in parts)
    other = cut(whole(), config, seed=4)
    assert values(other.test) == parts[2], "runs of several seeds are tested on the same samples"
    assert values(other.validation) != parts[1]


def test_moments_are_those_of_what_is_trained_on() -> None:
    def measure(data: ArrayDataset) -> Any:
        return (float(data.inputs.mean()),), (2.0,), 1.0

    found = cut(whole(measure=measure), DataConfig(test=0.5, validation=3), seed=0)
    assert isinstance(found.train, ArrayDataset)
    assert found.mean == (float(found.train.inputs.mean()),)
    assert (found.std, found.measure) == ((2.0,), None)


@pytest.mark.parametrize(
    ("options", "parts", "message"),
    [
        ({}, {}, "data.test: given 0, expected how much"),
        ({"test": 0.1}, {"test": numbered(3)}, "0 for a data set that brings a test set"),
        (
            {"validation": 5},
            {"test": numbered(3), "validation": numbered(3)},
            "0 for a data set that brings a validation set",
        ),
        ({"test": 200}, {}, "1 to 199 of 200"),
        ({"test": 0.001}, {}, "1 to 199 of 200"),
        ({"test": 10, "validation": 190}, {}, "1 to 189 of 190"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    options: dict[str, Any], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cut(whole(**parts), DataConfig(**options), seed=0)


@pytest.mark.parametrize("amount", [-1, -0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("key", ["validation", "test"])
def test_an_amount_that_is_none_is_refused(key: str, amount: float) -> None:
    with pytest.raises(InputError, match=f"data.{key}: given .*fraction below 1"):
        DataConfig(**{key: amount})


# -- every format ---------------------------------------------------------------------------------


def folder_of_classes(folder: Path) -> Path:
    """CLASS/N.png and no parts."""
    return make_tree(folder).joinpath("train").rename(folder.with_name("classes"))


def arrays_to_train_on(folder: Path) -> Path:
    make_arrays(folder)
    for path in folder.glob("test_*.npy"):
        path.unlink()
    return folder


def files_to_train_on(folder: Path) -> Path:
    make_idx(folder)
    for path in folder.glob("test-*"):
        path.unlink()
    return folder


def shards_to_train_on(folder: Path) -> Path:
    make_shards(folder).joinpath("val-0.tar").unlink()
    return folder


def saved_alone(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    labels = ["no", "yes", "yes"] * 20
    vectors = [[float(index), 1.0] for index in range(60)]
    datasets.Dataset.from_dict({"x": vectors, "y": labels}).save_to_disk(str(folder))
    return folder


ALONE: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "a folder of classes": ("image_folder", folder_of_classes, {"size": 8}),
    "npy": ("npy", arrays_to_train_on, {}),
    "idx": ("idx", files_to_train_on, {}),
    "shards": ("webdataset", shards_to_train_on, {"size": 8}),
    "one split": ("huggingface", saved_alone, {"input": "x", "target": "y"}),
}


@pytest.mark.parametrize("kind", ALONE)
def test_one_array_or_one_folder_is_cut_whatever_its_format(kind: str, tmp_path: Path) -> None:
    """Law: parts are disjoint, complete and stratified; no test set is refused."""
    name, make, kwargs = ALONE[kind]
    root = make(tmp_path / "set")

    def load(**options: Any) -> Datasets:
        return load_datasets(
            DataConfig(dataset=name, root=str(root), kwargs=kwargs, **options), seed=0
        )

    with pytest.raises(InputError, match=r"--data\.test 0\.1"):
        load()
    all_samples = load(test=1)
    found = load(test=0.2, validation=0.25)
    assert found.validation is not None
    parts = (found.train, found.validation, found.test)
    total = len(all_samples.train) + 1
    count = round(total * 0.2)
    assert [len(part) for part in parts[1:]] == [round((total - count) * 0.25), count]
    known = sorted(samples_of(all_samples.train) + samples_of(all_samples.test))
    assert sorted(itertools.chain(*map(samples_of, parts))) == known
    labels = [labels_of(part) for part in parts]
    assert all(part is not None for part in labels)
    counts = [np.bincount(part, minlength=found.num_classes) for part in labels if part is not None]
    shares = np.sum(counts, axis=0) / total
    assert (abs(counts[2] - shares * count) < 1).all()


def test_pictures_held_out_are_read_without_augmentation(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "set")
    kwargs = {"size": 8, "augment": JITTER}
    options = {"dataset": "image_folder", "root": str(root), "validation": 0.3}
    augmented = load_datasets(DataConfig(kwargs=kwargs, **options), seed=0)
    plain = load_datasets(DataConfig(kwargs={"size": 8}, **options), seed=0)
    assert augmented.validation is not None
    assert plain.validation is not None
    assert samples_of(augmented.validation) == samples_of(plain.validation)
    assert samples_of(augmented.train) != samples_of(plain.train)


@pytest.mark.parametrize("make", [make_tree, make_shards])
def test_a_validation_set_beside_a_test_set_is_chosen_on(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Law: alone it is what there is to test on."""
    root = make(tmp_path / "set")
    name = "image_folder" if make is make_tree else "webdataset"
    config = DataConfig(dataset=name, root=str(root), kwargs={"size": 8})
    assert load_datasets(config, seed=0).chosen_on == "test"
    if make is make_tree:
        shutil.copytree(root / "val", root / "test")
    else:
        shutil.copy(root / "val-0.tar", root / "test-0.tar")
    found = load_datasets(config, seed=0)
    assert found.chosen_on == "validation"
    assert list(found.held_out) == ["validation", "test"]
    assert [len(part) for part in found.held_out.values()] == [11, 11]


def test_files_with_val_in_their_names_are_a_validation_set(tmp_path: Path) -> None:
    root = make_idx(tmp_path)
    for kind in ("images-idx3", "labels-idx1"):
        shutil.copy(root / f"test-{kind}-ubyte", root / f"val-{kind}-ubyte")
    config = DataConfig(dataset="idx", root=str(root))
    assert {name: len(part) for name, part in load_datasets(config, seed=0).held_out.items()} == {
        "validation": 101,
        "test": 101,
    }
    for path in root.glob("test-*"):
        path.unlink()
    assert list(load_datasets(config, seed=0).held_out) == ["test"]


def test_pictures_to_test_on_without_classes_are_not_a_test_set(tmp_path: Path) -> None:
    """Law: as ImageNet comes: test/ has pictures side by side, and val/ is what has labels."""
    root = make_tree(tmp_path / "set")
    (root / "test").mkdir()
    (root / "test" / "a.png").write_bytes(next((root / "val").rglob("*.png")).read_bytes())
    config = DataConfig(dataset="image_folder", root=str(root), kwargs={"size": 8})
    assert len(load_datasets(config, seed=0).test) == 11


# -- a user's own ---------------------------------------------------------------------------------


class Samples:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index)]), index % 3


class Batches(Samples):
    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.targets = [index % 3 for index in range(count)]

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return indices.float()[:, None], indices % 3


@pytest.mark.parametrize(("kind", "expected"), [(Samples, Subset), (Batches, GatheredSubset)])
def test_a_data_set_of_the_users_is_cut_by_its_indices(
    kind: type[Samples], expected: type, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    data = Datasets(train=kind(90), input_shape=(1,), num_classes=3)
    with caplog.at_level("INFO", logger="convoy"):
        found = cut(data, DataConfig(test=0.1, validation=30), seed=0)
    parts = (found.train, found.validation, found.test)
    assert {type(part) for part in parts} == {expected}
    numbers = [[int(part[i][0]) for i in range(len(part))] for part in parts if part is not None]
    assert sorted(itertools.chain(*numbers)) == list(range(90))
    assert ("drawn at random" in caplog.text) == (kind is Samples)
    for part, own in zip(parts, numbers, strict=True):
        if isinstance(part, GatheredSubset):
            inputs, targets = part.gather(torch.tensor([2, 0]))
            assert inputs.flatten().tolist() == [own[2], own[0]]
            assert targets.tolist() == [own[2] % 3, own[0] % 3]
    assert len(NOTHING) == 0
