"""Mapped .npy files: batches are those of the array in memory, and files that do not fit fail."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import Datasets, load_datasets
from data.formats import npy as mapped
from data.formats.npy import MappedDataset
from data.loading.loader import build_loader
from data.loading.order import Plan
from tests.support.data_sets import make_arrays
from tests.support.loaded import refusal_of


def load(root: Path, **kwargs: Any) -> Datasets:
    return load_datasets(DataConfig(dataset="npy", root=str(root), kwargs=kwargs), seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_arrays(tmp_path_factory.mktemp("arrays"))


@settings(max_examples=50, deadline=None)
@given(indices=st.lists(st.integers(0, 52), max_size=20))
def test_a_batch_is_the_samples_asked_for_in_their_order(indices: list[int], folder: Path) -> None:
    """Law: gather(i) = array[i], with repetitions, in any order, and empty."""
    data = load(folder)
    assert isinstance(data.train, MappedDataset)
    inputs, targets = data.train.gather(torch.tensor(indices, dtype=torch.int64))
    expected = np.load(folder / "train_inputs.npy")[indices]
    np.testing.assert_array_equal(inputs.numpy(), expected)
    np.testing.assert_array_equal(targets.numpy(), np.load(folder / "train_targets.npy")[indices])
    assert (inputs.dtype, targets.dtype) == (torch.uint8, torch.int64)


def test_facts_are_found_from_the_files(folder: Path) -> None:
    data = load(folder)
    assert (len(data.train), len(data.test), data.input_shape) == (53, 19, (3, 6, 5))
    assert (data.num_classes, data.scale, data.facts().dtype) == (3, 255.0, "uint8")
    pixels = np.load(folder / "train_inputs.npy") / 255
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), rtol=1e-12)
    given = load(folder, mean=[0.5], std=[0.25], classes=["a", "b", "c", "d"])
    assert (given.mean, given.std, given.num_classes) == ((0.5,), (0.25,), 4)
    assert given.class_names == ("a", "b", "c", "d")


def test_mean_and_deviation_of_large_files_come_from_samples_spread_over_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "MOMENTS_BYTES", 90 * 10)
    chosen = np.load(folder / "train_inputs.npy")[[53 * i // 10 for i in range(10)]] / 255
    np.testing.assert_allclose(load(folder).mean, chosen.mean((0, 2, 3)), rtol=1e-12)


def test_channels_may_come_last_in_the_file(folder: Path, tmp_path: Path) -> None:
    last = {
        f"{split}_inputs": np.load(folder / f"{split}_inputs.npy").transpose(0, 2, 3, 1)
        for split in ("train", "test")
    }
    make_arrays(tmp_path, **last)
    data, expected = load(tmp_path, channels_last=True), load(folder)
    assert data.input_shape == (3, 6, 5)
    for index in (0, 7, 52):
        assert torch.equal(data.train[index][0], expected.train[index][0])


@pytest.mark.parametrize(
    ("targets", "width", "dtype"),
    [
        (np.linspace(0, 1, 53, dtype=np.float32), 1, torch.float32),
        (np.ones((53, 4), np.float32), 4, torch.float32),
        (np.ones((53, 2, 2), np.uint8), 4, torch.uint8),
    ],
)
def test_targets_of_other_tasks_stay_as_they_are(
    targets: np.ndarray[Any, Any], width: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    data = load(make_arrays(tmp_path, train_targets=targets, test_targets=targets[:19]))
    assert data.num_classes == width
    assert data.train[3][1].dtype == dtype
    np.testing.assert_array_equal(data.train[3][1].numpy(), targets[3])


def test_a_worker_that_is_not_forked_maps_the_files_again(folder: Path) -> None:
    """Law: the pickle holds paths, not the array."""
    data = load(folder)
    pickled = pickle.dumps(data.train)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert torch.equal(again[5][0], data.train[5][0])


def test_it_cannot_be_asked_to_live_on_the_device(folder: Path) -> None:
    data, plan = load(folder), Plan(num_samples=53, global_batch_size=8)
    config = DataConfig(dataset="npy", placement="device")
    with pytest.raises(InputError, match=r"data\.placement"):
        build_loader(config, data.train, data.held_out, plan=plan, device=torch.device("cpu"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "fewer targets": ({"train_targets": np.zeros(52, np.int64)}, "one for each of the 53 inputs"),
    "negative targets": ({"test_targets": np.full(19, -1, np.int32)}, "given -1"),
    "another test shape": ({"test_inputs": np.zeros((19, 3, 6, 4), np.uint8)}, "(3, 6, 5)"),
    "another test type": ({"test_inputs": np.zeros((19, 3, 6, 5), np.float32)}, "uint8(3, 6, 5)"),
    "no samples": ({"train_inputs": np.zeros((0, 3), np.uint8)}, "one sample or more"),
    "a number": ({"train_inputs": np.array(3)}, "one sample or more"),
    "words": ({"train_inputs": np.array(["a"] * 53)}, "native order"),
    "big-endian": ({"train_inputs": np.zeros((53, 3), ">f4")}, "native order"),
    "complex": ({"train_inputs": np.zeros((53, 3), np.complex64)}, "native order"),
    "objects": ({"train_inputs": np.array([None] * 53)}, "cannot be read as NPY"),
}


@pytest.mark.parametrize(("files", "said"), WRONG.values(), ids=list(WRONG))
def test_files_that_do_not_fit_are_refused_by_name(
    files: dict[str, Any], said: str, tmp_path: Path
) -> None:
    message = refusal_of(lambda: load(make_arrays(tmp_path, **files)))
    assert said in message
    assert str(tmp_path) in message


def test_truncated_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    path = make_arrays(tmp_path) / "train_inputs.npy"
    whole = path.read_bytes()
    open_bracket = whole.replace(b"}", b" ", 1)
    for content in (whole[:-1], whole[:20], b"", b"not npy", open_bracket):
        path.write_bytes(content)
        message = refusal_of(lambda: load(tmp_path))
        assert message.startswith(f"{path} cannot be read as NPY")
    with path.open("wb") as archive:
        np.savez(archive, a=np.zeros(3))
    assert "an archive of arrays" in refusal_of(lambda: load(tmp_path))
    path.unlink()
    assert "lacks train_inputs.npy" in refusal_of(lambda: load(tmp_path))
    assert refusal_of(lambda: load(tmp_path / "no")).startswith("data.root: given")


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"num_classes": 2}, "more than the highest target 2"),
        ({"num_classes": 0}, "1 or more"),
        ({"mean": [0.5]}, "both data.kwargs.mean and data.kwargs.std"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "one for each of 3 channels"),
        ({"mean": [0.5], "std": [-1.0]}, "above 0"),
        ({"num_clases": 3}, "Did you mean 'num_classes'?"),
        ({"classes": "abc"}, "a list, each text"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    kwargs: dict[str, Any], said: str, folder: Path
) -> None:
    assert said in refusal_of(lambda: load(folder, **kwargs))


def test_channels_last_needs_images(tmp_path: Path) -> None:
    inputs = {f"{s}_inputs": np.zeros((n, 4), np.float32) for s, n in (("train", 53), ("test", 19))}
    make_arrays(tmp_path, **inputs)
    assert load(tmp_path).input_shape == (4,)
    assert "(N, H, W, C)" in refusal_of(lambda: load(tmp_path, channels_last=True))
