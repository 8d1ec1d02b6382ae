"""Do the labels have anything to do with the inputs? Two quick classifiers on held-out samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.datasets import Datasets
from data.normalize import Normalize
from launch.diagnosis.data_sample import Sample
from launch.diagnosis.findings import Check, Finding

MOST_TRAIN = 3000
MOST_TEST = 1500
FEWEST_TEST = 60
MOST_FEATURES = 1024
SIGNIFICANT = 4.0
"""Standard deviations above chance from which labels count as related to the inputs."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean recall over classes: 1 / classes by chance, however unequal the classes are."""

    recall: float
    chance: float
    deviation: float
    """Standard deviation that `recall` has if predictions and labels are independent."""

    @property
    def is_above_chance(self) -> bool:
        return self.recall - self.chance > SIGNIFICANT * self.deviation

    @property
    def skill(self) -> float:
        """0 by chance, 1 if all are right."""
        return (self.recall - self.chance) / max(1 - self.chance, 1e-9)

    def __str__(self) -> str:
        return f"{self.recall:.1%}"


def score(predicted: Tensor, targets: Tensor, num_classes: int) -> Score:
    """Compare predictions with labels, both `(n,)` int64."""
    guessed = torch.bincount(predicted, minlength=num_classes).double() / len(predicted)
    counts = torch.bincount(targets, minlength=num_classes).double()
    right = torch.bincount(targets[predicted == targets], minlength=num_classes).double()
    present = counts > 0
    recalls = right[present] / counts[present]
    spread = guessed[present] * (1 - guessed[present]) / counts[present]
    number = int(present.sum())
    chance = float(guessed[present].sum()) / number
    # Guessing one class only has no spread by this formula; it is chance, not skill.
    deviation = max(float(spread.sum()) ** 0.5 / number, 0.5 / len(targets))
    return Score(float(recalls.mean()), chance, deviation)


def check_labels(data: Datasets, train: Sample, test: Sample, learned: Score | None) -> Finding:
    """Labels at chance level for every classifier are shuffled, or not aligned with the inputs.

    Args:
        data: The data sets.
        train: Samples of the training set.
        test: Samples of the test set.
        learned: Score of the run's own model, after its short training, on training samples that
            it was not shown.
    """
    train, test = train.subset(MOST_TRAIN + MOST_TEST), test.subset(MOST_TEST, seed=1)
    inside = Sample(*_legal(train, data.num_classes), train.total)
    outside = Sample(*_legal(test, data.num_classes), test.total)
    held_out = min(MOST_TEST, len(inside.targets) // 4)
    if held_out < FEWEST_TEST or len(outside.targets) < FEWEST_TEST:
        return Check("data", "labels").note("too few samples to judge the labels by")
    features, others = _features(data, inside.inputs, outside.inputs)
    fit, check = features[held_out:], torch.cat([features[:held_out], others])
    fit_labels, labels = inside.targets[held_out:], inside.targets[:held_out]
    guesses = {
        "a linear classifier": ridge(fit, fit_labels, check, data.num_classes),
        "nearest neighbours": nearest(fit, fit_labels, check),
    }
    within, across = (
        {name: score(guess[part], truth, data.num_classes) for name, guess in guesses.items()}
        for part, truth in (
            (slice(held_out), labels),
            (slice(held_out, None), outside.targets),
        )
    )
    return _judge(within, across, learned)


def _legal(sample: Sample, num_classes: int) -> tuple[Tensor, Tensor]:
    legal = (sample.targets >= 0) & (sample.targets < num_classes)
    return sample.inputs[legal], sample.targets[legal]


def _judge(within: dict[str, Score], across: dict[str, Score], learned: Score | None) -> Finding:
    chance = max(found.chance for found in within.values())
    words = [f"{name} {found} held out, {across[name]} test" for name, found in within.items()]
    words += [f"the model {learned} of unseen training samples"] if learned else []
    seen = f"mean recall over classes (chance {chance:.1%}): {', '.join(words)}"
    # Test samples say nothing here: where samples come in clusters, predictions for them are not
    # independent, and a few clusters may be right by luck.
    classifiers = [*within.values(), *([learned] if learned else [])]
    if not any(found.is_above_chance for found in classifiers):
        return Check("data", "labels").problem(
            f"{seen}: nobody does better than chance",
            "Labels that do not depend on the inputs can be memorised but not learned. They were "
            "shuffled, or inputs and labels are not in the same order.",
            "look at some samples beside their labels; shuffle inputs and labels with one "
            "permutation",
        )
    best = max(within, key=lambda name: within[name].skill)
    if within[best].is_above_chance and across[best].skill < 0.3 * within[best].skill:
        return Check("data", "labels").problem(
            f"{seen}: what is learned on training samples does not hold on test samples",
            "The test labels are shuffled or numbered otherwise, or the test inputs are prepared "
            "in another way.",
            "look at some test samples beside their labels; prepare both splits with one function",
        )
    return Check("data", "labels").ok(seen)


def _features(data: Datasets, *splits: Tensor) -> list[Tensor]:
    """Normalised, flattened, at most MOST_FEATURES wide; standardised by the first split."""
    normalize = Normalize(data, torch.device("cpu"))
    flat = [normalize(inputs).flatten(1) for inputs in splits]
    if flat[0].shape[1] > MOST_FEATURES:
        generator = torch.Generator().manual_seed(0)
        projection = torch.randn(flat[0].shape[1], MOST_FEATURES, generator=generator)
        flat = [rows @ (projection / MOST_FEATURES**0.5) for rows in flat]
    mean, scale = flat[0].mean(0), flat[0].std().clamp(min=1e-6)
    return [(rows - mean) / scale for rows in flat]


def ridge(fit: Tensor, labels: Tensor, check: Tensor, num_classes: int) -> Tensor:
    """Classes predicted by ridge regression on one-hot labels, every class weighing the same."""
    ones = torch.ones(len(fit), 1)
    rows = torch.cat([fit, ones], 1).double()
    weights = (1.0 / torch.bincount(labels, minlength=num_classes).clamp(min=1))[labels].double()
    targets = F.one_hot(labels, num_classes).double() * 2 - 1
    gram = rows.T @ (rows * weights[:, None])
    penalty = 0.1 * gram.diagonal().mean() * torch.eye(rows.shape[1], dtype=torch.float64)
    solution: Tensor = torch.linalg.solve(gram + penalty, rows.T @ (targets * weights[:, None]))
    predicted: Tensor = torch.cat([check, torch.ones(len(check), 1)], 1).double() @ solution
    return predicted.argmax(1)


def nearest(fit: Tensor, labels: Tensor, check: Tensor) -> Tensor:
    """The label of the nearest sample."""
    closest: Tensor = torch.cdist(check, fit).argmin(1)
    return labels[closest]
