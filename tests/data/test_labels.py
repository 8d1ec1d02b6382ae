"""Labels as classes: a stray one is named with its place, gaps are said."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import DataConfig
from data.datasets import load_datasets
from data.labels import GAPS, ClassCounter
from tests.support.idx_files import write_idx


def counted(*parts: list[int]) -> int:
    counter = ClassCounter()
    first = 0
    for part in parts:
        counter.add(np.array(part), "labels.npy", first)
        first += len(part)
    return counter.count()


@pytest.mark.parametrize("stray", [40, 255, 20_000_000, 2_000_000_000])
def test_a_stray_label_is_refused_by_its_place(stray: int) -> None:
    with pytest.raises(InputError, match=rf"labels.npy: label 12: given {stray}.*11 labels occur"):
        counted([*range(10)], [1, 2, stray, 3])


def test_a_label_below_zero_is_refused_by_its_place() -> None:
    with pytest.raises(InputError, match=r"label 4: given -1, expected 0 or more"):
        counted([0, 1, 2], [1, -1])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0], 1), ([5, 1], 6), ([*range(10)], 10), ([*range(0, 2000, 2)], 1999), ([GAPS], GAPS + 1)],
)
def test_gaps_are_allowed_if_there_are_few_or_as_many_classes_with_samples(
    labels: list[int], classes: int
) -> None:
    assert counted(labels) == classes


def test_gaps_are_said_and_nothing_else_is(caplog: pytest.LogCaptureFixture) -> None:
    counted([0, 1, 2])
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="convoy"):
        counted([0, 3, 4])
    assert [record.getMessage() for record in caplog.records] == [
        "labels: 2 of 5 classes have no sample (1, 2)"
    ]


def test_a_single_class_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert counted([0, 0, 0]) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "every sample is of class 0" in line


@pytest.mark.parametrize("stray", [255, 20_000_000, 2_000_000_000])
def test_idx_files_with_a_stray_label_are_refused_at_once(tmp_path: Path, stray: int) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        labels = np.arange(50, dtype="i4") % 10
        labels[7] = stray if split == "train" else labels[7]
        images = random.integers(0, 256, (50, 8, 8), dtype="u1")
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
    with pytest.raises(InputError, match=rf"train-labels-idx1-ubyte: label 7: given {stray}"):
        load_datasets(DataConfig(dataset="idx", root=str(tmp_path)), seed=0)
