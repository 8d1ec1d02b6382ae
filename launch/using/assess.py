"""A trained model on a data set: its metrics, and the mistakes it was surest of."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from configs.errors import InputError
from data.datasets import Datasets
from data.facts import InputFacts
from data.loading.loader import Loader, build_loader
from data.loading.order import Plan
from data.samples import Batch, MapDataset
from data.splits import Divisible
from data.structures import as_tensor_or_none
from data.structures import split as split_sample
from launch.using.class_metrics import Metrics, Tally
from launch.using.trained import Trained, not_finite, require_classes

THESE = "these"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """One misclassified sample."""

    index: int
    """Its index in the data set."""
    true: int
    predicted: int
    confidence: float
    """Probability of the predicted class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Metrics over a data set, and the most confident mistakes with their inputs."""

    metrics: Metrics
    mistakes: list[Mistake]
    """Most confident first."""
    inputs: list[Tensor]
    """What each mistake was made on, as it is stored, in host memory."""


def assess(
    trained: Trained, data: Datasets, *, split: str = "test", num_mistakes: int
) -> Assessment:
    """Evaluate on one set of `data` with the batches and operations of training.

    Args:
        trained: The model; `data` and `evaluate` of its config say how to read the data.
        data: What to evaluate on.
        split: test, validation or train.
        num_mistakes: How many mistakes to keep.

    Raises:
        InputError: If the data do not have the shape, the type or the classes the model was trained
            on, or an output is not finite.
    """
    require_classes(trained.config)
    check_same_kind(trained.facts, data.facts())
    tally = Tally(trained.facts.num_classes, trained.runtime.device)
    worst: list[tuple[float, int, int, int, Tensor]] = []
    start = 0
    for inputs, targets, _ in _batches(trained, samples_of(data, split)):
        logits = trained.logits(inputs)
        _check(logits, targets, trained.facts)
        bad = (~logits.isfinite()).any(1).nonzero()
        if len(bad):
            place = int(bad[0])
            raise not_finite(f"{split} sample {start + place}", inputs[place], logits[place])
        predicted, confidence = tally.add(logits, targets)
        for index in _surest(predicted != targets, confidence, num_mistakes):
            facts = (int(targets[index]), int(predicted[index]), inputs[index].cpu())
            # Ties go to the sample that comes first.
            worst.append((float(confidence[index]), -(start + index), *facts))
        worst = heapq.nlargest(num_mistakes, worst, key=lambda entry: entry[:2])
        start += len(targets)
    mistakes = [
        Mistake(index=-negative, true=true, predicted=predicted, confidence=confidence)
        for confidence, negative, true, predicted, _ in worst
    ]
    return Assessment(
        metrics=tally.metrics(), mistakes=mistakes, inputs=[entry[-1] for entry in worst]
    )


def tells_classes_apart(trained: Trained, data: Datasets) -> bool:
    """Whether every sample has one class of several, as the tables and pictures need it."""
    _, target = split_sample(data.train[0])
    tensor = as_tensor_or_none(target)
    return (
        trained.config.task.name == "classification"
        and not trained.facts.structure
        and trained.facts.num_classes > 0
        and tensor is not None
        and tensor.ndim == 0
    )


def check_same_kind(model: InputFacts, data: InputFacts) -> None:
    """Refuse data the model cannot have been trained for.

    Raises:
        InputError: If shape, type or number of classes differ.
    """
    for what, given, expected in (
        ("shape of the inputs", data.input_shape, model.input_shape),
        ("type of the inputs", data.dtype, model.dtype),
    ):
        if given != expected and given and expected:
            raise InputError(what, given=given, expected=f"{expected}, as in training")
    if data.vocabulary != model.vocabulary:
        raise InputError(
            "vocabulary of the data",
            given=data.vocabulary and data.vocabulary.to_json(),
            expected="that of the run's training",
            remedy="Tokens of another vocabulary stand for other text: evaluate those of the run.",
        )
    if data.num_classes > model.num_classes:
        raise InputError(
            "classes of the data",
            given=data.num_classes,
            expected=f"at most {model.num_classes}, as in training",
        )


def to_record(trained: Trained, found: Assessment) -> dict[str, Any]:
    """The content of evaluation.json."""
    metrics, names = found.metrics, trained.facts.class_names
    columns = (metrics.precision, metrics.recall, metrics.f1, metrics.support, metrics.predicted)
    keys = ("precision", "recall", "f1", "support", "predicted")
    per_class = [
        {"class": number, "name": name, **dict(zip(keys, values, strict=True))}
        for number, (name, *values) in enumerate(
            zip(names, *(column.tolist() for column in columns), strict=True)
        )
    ]
    return origin(trained) | {
        "accuracy": metrics.accuracy,
        "loss": metrics.loss,
        "count": metrics.count,
        "correct": metrics.correct,
        "macro_f1": metrics.macro_f1,
        "calibration_error": metrics.calibration_error,
        "reliability": metrics.reliability(),
        "classes": list(names),
        "per_class": per_class,
        "confusion_matrix": metrics.confusion.tolist(),
        "mistakes": [asdict(mistake) for mistake in found.mistakes],
    }


def origin(trained: Trained) -> dict[str, Any]:
    """Which weights were evaluated, and on what: the beginning of evaluation.json."""
    config = trained.config
    return {
        "run": config.name,
        "checkpoint": trained.checkpoint_name,
        "step": trained.step,
        "weights": trained.weights,
        "data": {"dataset": config.data.dataset, "root": config.data.root},
    }


def samples_of(data: Datasets, split: str) -> MapDataset:
    sets = {"train": data.train, **data.held_out}
    if split not in sets:
        raise InputError(
            "--split",
            given=split,
            expected=f"one of {', '.join(sets)}",
            remedy="The run held nothing out for validation (data.validation).",
        )
    samples = sets[split]
    if split == "train" and isinstance(samples, Divisible):  # without what only training does
        return samples.part(np.arange(len(samples)), training=False)
    return samples


def loader_of(trained: Trained, samples: MapDataset) -> Loader:
    """What gives batches of these samples, the set `THESE`, on the device of the model."""
    config, device = trained.config, trained.runtime.device
    plan = Plan(num_samples=len(samples), global_batch_size=1, seed=config.seed)
    # Nobody trains here: the samples stand in for the training set, which is not to be moved.
    return build_loader(config.data, samples, {THESE: samples}, plan=plan, device=device)


def _batches(trained: Trained, samples: MapDataset) -> Iterator[Batch]:
    """Batches as an evaluation in training has them, on the device of the model."""
    size = trained.config.evaluate.batch_size
    for _, batch in loader_of(trained, samples).evaluation(THESE, size, 0, 1):
        yield batch.to(trained.runtime.device)


def _check(logits: Tensor, targets: Tensor, facts: InputFacts) -> None:
    if logits.ndim != 2 or logits.shape != (len(targets), facts.num_classes):
        raise InputError(
            "output of the model",
            given=tuple(logits.shape),
            expected=f"logits ({len(targets)}, {facts.num_classes})",
        )
    if bool(((targets < 0) | (targets >= facts.num_classes)).any()):
        raise InputError(
            "labels of the data",
            given=sorted(set(targets.tolist())),
            expected=f"0 to {facts.num_classes - 1}, as in training",
        )


def _surest(wrong: Tensor, confidence: Tensor, most: int) -> list[int]:
    """Indices of the `most` most confident mistakes of a batch; of equal ones the first."""
    indices = wrong.nonzero()[:, 0]
    order = confidence[indices].argsort(descending=True, stable=True)
    chosen: list[int] = indices[order[:most]].tolist()
    return chosen
