"""Planted faults in data are found, and only they."""

from __future__ import annotations

import re

import pytest
import torch

from configs.schema import DataConfig
from configs.schema_model import ModelConfig
from data.samples import ArrayDataset, Datasets
from launch.diagnosis.check_copies import check_copies
from launch.diagnosis.check_data import check_classes
from launch.diagnosis.check_labels import score
from launch.diagnosis.data_sample import MOST_SAMPLES, Looks, Sample, read_sample
from tests.launch.diagnosis.examining import examine, healthy, levels, planted_config

FAULTS = {
    "raw_pixels": ("normalisation", "problem", "raw pixels"),
    "tiny_inputs": ("normalisation", "warning", "standard deviation 0.0"),
    "shuffled": ("labels", "problem", "nobody does better than chance"),
    "off_by_one": ("labels", "problem", "nobody does better than chance"),
    "renumbered_test": ("labels", "problem", "does not hold on test samples"),
    "missing_class": ("classes", "problem", "class 3"),
    "imbalanced": ("classes", "warning", "largest class is right for 8"),
    "copies": ("train_in_test", "problem", "20 of 200"),
    "contradictions": ("copies", "warning", "with another label"),
    "nan_input": ("inputs", "problem", "1 of 600 train samples hold NaN"),
    "blank": ("inputs", "warning", "10.0%"),
    "constant": ("inputs", "problem", "are the same"),
    "uneven_features": ("normalisation", "warning", "('size') to 2.9e+02 ('weight')"),
    "constant_feature": ("inputs", "warning", "'size' never changes in 600 training samples"),
    "from_one": ("label_range", "problem", "train 1 to 5"),
    "slow": ("loading", "warning", "the model waits"),
}


def test_healthy_data_gives_no_finding() -> None:
    assert levels(healthy()) == {}
    assert {"classes", "inputs", "labels", "loading", "normalisation"} <= healthy().keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    check, level, words = FAULTS[fault]
    found = examine(planted_config(fault), steps=24)
    assert found[check].level == level
    assert words in found[check].seen
    assert found[check].why
    assert found[check].change


def test_a_loader_that_sleeps_is_waited_for_most_of_the_time() -> None:
    seen = examine(planted_config("slow"), steps=24)["loading"].seen
    waiting = re.search(r"waits (\d+)% of the time", seen)
    assert waiting is not None
    assert int(waiting[1]) >= 90


def test_mnist_itself_is_clean() -> None:
    config = planted_config()
    from dataclasses import replace

    config = replace(config, data=DataConfig(), model=ModelConfig(kwargs={"hidden": [32]}))
    found = examine(config, steps=30)
    assert levels(found) == {}
    assert found["train_in_test"].seen.startswith("0 of 10,000")


class Endless:
    """Claims more samples than anybody would read."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.tensor([float(index % 97)]), index % 3


def test_a_large_data_set_is_sampled_evenly() -> None:
    """Law: at most MOST_SAMPLES are read, spread over the whole, none twice."""
    sample = read_sample(Endless(), Looks(inputs=True, classes=True))
    assert len(sample.targets) == MOST_SAMPLES
    assert not sample.is_complete
    assert sample.size == "4,096 of 1,000,000,000"
    assert set(sample.targets.tolist()) == {0, 1, 2}


def test_copies_are_counted_by_content() -> None:
    rows = torch.arange(64 * 40).reshape(40, 64).float()
    train = Sample(rows, torch.zeros(40).long(), 40)
    test = Sample(torch.cat([rows[:2], rows + 0.5]), torch.zeros(42).long(), 42)
    shared, repeated = check_copies(train, {"test": test})
    assert shared.seen.startswith("2 of 42")
    assert repeated.level == "ok"


def test_recall_counts_every_class_the_same() -> None:
    """Law: always guessing the largest class is chance, not skill, however large it is."""
    targets = torch.tensor([0] * 95 + [1] * 5)
    always = score(torch.zeros(100).long(), targets, 2)
    assert always.recall == always.chance == 0.5
    assert not always.is_above_chance
    right = score(targets, targets, 2)
    assert right.is_above_chance
    assert right.skill == 1.0


def test_a_class_that_a_set_lacks_is_a_problem() -> None:
    """Law: of the validation set as of the test set, and both have their column in the table."""

    def sample(*counts: int) -> Sample:
        targets = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
        return Sample(torch.rand(len(targets), 4), targets, len(targets))

    whole = sample(4, 4)
    data = Datasets(train=arrays(), test=arrays(), input_shape=(4,), num_classes=2)
    for name in ("validation", "test"):
        held_out = {"validation": whole, "test": whole} | {name: sample(3)}
        found = check_classes(data, whole, held_out)
        assert found.level == "problem"
        assert found.seen == f"no {name} samples of class 1"
        assert found.table[1] == {"class": "1", "train": 4, "validation": 4, "test": 4} | {name: 0}


def arrays() -> ArrayDataset:
    return ArrayDataset(torch.rand(8, 4), torch.arange(8) % 2)
