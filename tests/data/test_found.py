"""What a run says of its data at the start."""

from __future__ import annotations

from pathlib import Path

import torch

from configs.schema import DataConfig
from data.datasets import load_datasets
from data.found import describe
from data.samples import ArrayDataset, Datasets
from tests.support.data_sets import make_tree


def arrays(counts: tuple[int, ...]) -> ArrayDataset:
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return ArrayDataset(torch.arange(len(targets) * 2).reshape(-1, 1, 2).float(), targets)


def test_samples_classes_shape_type_and_range_are_said() -> None:
    data = Datasets(
        train=arrays((5, 2, 9)),
        validation=arrays((1, 0, 1)),
        test=arrays((2, 2)),
        input_shape=(1, 2),
        num_classes=3,
        classes=("a", "b", "c"),
    )
    found = describe(data)
    assert found.samples == {"train": 16, "validation": 2, "test": 4}
    assert found.samples_per_class == {"train": (2, 9), "validation": (0, 1), "test": (0, 2)}
    assert found.lacking == {"validation": ["b"], "test": ["c"]}
    assert found.line() == (
        "data: 16 to train on, 2 to choose on, 4 to test on; 2 to 9 of a class to train on; "
        "inputs 1x2 float32 0 to 31; no validation sample of b; no test sample of c"
    )


def test_values_that_are_not_finite_are_said() -> None:
    train = arrays((3, 3))
    train.inputs[4, 0, 1] = float("nan")
    data = Datasets(train=train, test=arrays((1, 1)), input_shape=(1, 2), num_classes=2)
    assert describe(data).values is None
    assert "with values that are not finite" in describe(data).line()


def test_pictures_and_what_was_left_out_are_counted(tmp_path: Path) -> None:
    """Law: labels are counted without decoding; range and type are those of a few pictures."""
    root = make_tree(tmp_path)
    (root / "train" / "parrot" / "notes.txt").touch()
    config = DataConfig(dataset="image_folder", root=str(root), kwargs={"size": 8})
    found = describe(load_datasets(config, seed=0))
    assert found.samples == {"train": 31, "test": 11}
    assert found.samples_per_class["train"] == (10, 11)
    assert (found.shape, found.dtype) == ((3, 8, 8), "uint8")
    assert found.left_out == ("1 of 32 files: .txt 1",)
    assert found.to_json()["left_out"] == found.left_out


def test_numbers_to_predict_have_no_classes() -> None:
    train = ArrayDataset(torch.zeros(4, 2), torch.rand(4))
    data = Datasets(train=train, test=train, input_shape=(2,), num_classes=1)
    assert describe(data).samples_per_class == {}
    assert describe(data).line() == "data: 4 to train on, 4 to test on; inputs 2 float32 0 to 0"
