"""Metrics follow from exact counts, whatever the batches; another library agrees with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from launch.using.class_metrics import NUM_BINS, Metrics, Tally

CPU = torch.device("cpu")


def tally(logits: Tensor, targets: Tensor, batch_size: int | None = None) -> Metrics:
    counts = Tally(logits.shape[1], CPU)
    size = batch_size or len(targets)
    for start in range(0, len(targets), size):
        counts.add(logits[start : start + size], targets[start : start + size])
    return counts.metrics()


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Logits whose softmax is these probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_case(
    num_samples: int, num_classes: int, seed: int, spread: float = 3.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(num_samples, num_classes, generator=generator)
    return logits, torch.randint(0, num_classes, (num_samples,), generator=generator)


def by_hand() -> Metrics:
    """Six samples of three classes; the third class occurs as a prediction only."""
    probabilities = [
        [0.70, 0.20, 0.10],  # 0, right
        [0.60, 0.30, 0.10],  # 0, right
        [0.10, 0.90, 0.00],  # 0, taken for 1
        [0.20, 0.80, 0.00],  # 1, right
        [0.95, 0.05, 0.00],  # 1, taken for 0
        [0.20, 0.10, 0.70],  # 1, taken for 2
    ]
    return tally(logits_of(probabilities), torch.tensor([0, 0, 0, 1, 1, 1]))


def test_a_case_computed_by_hand() -> None:
    metrics = by_hand()
    assert metrics.confusion.tolist() == [[2, 1, 0], [1, 1, 1], [0, 0, 0]]
    assert (metrics.correct, metrics.count, metrics.accuracy) == (3, 6, 0.5)
    assert metrics.precision.tolist() == [2 / 3, 1 / 2, 0]
    assert metrics.recall.tolist() == [2 / 3, 1 / 3, 0]
    assert metrics.f1.tolist() == pytest.approx([2 / 3, 2 / 5, 0])
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 2 / 5 + 0) / 3)
    assert metrics.support.tolist() == [3, 3, 0]
    assert metrics.predicted.tolist() == [3, 2, 1]
    # Bins of 1/15: 0.60 in the 9th; both 0.70 in the 11th; 0.80 in the 12th; 0.90 in the 14th;
    # 0.95 in the 15th. Gaps |correct - confidence|: 0.4, |1 - 1.4|, 0.2, 0.9, 0.95.
    assert metrics.calibration_error == pytest.approx((0.4 + 0.4 + 0.2 + 0.9 + 0.95) / 6)
    counts = [row["count"] for row in metrics.reliability()]
    assert [place + 1 for place, count in enumerate(counts) if count] == [9, 11, 12, 14, 15]


def test_a_bin_holds_its_upper_bound_and_not_its_lower_one() -> None:
    """Guo et al. define bin m as ((m - 1) / M, m / M]: certainty is in the last bin."""
    certain = torch.tensor([[0.0, -1e9]])
    fifth = logits_of([[0.2] * 5])  # 3/15 exactly, the upper bound of the third
    for logits, place in ((certain, NUM_BINS), (fifth, 3)):
        counts = [r["count"] for r in tally(logits, torch.tensor([0])).reliability()]
        assert counts.index(1) + 1 == place


def test_the_reliability_rows_explain_the_calibration_error() -> None:
    """Law: the error is the mean over samples of |accuracy - confidence| of their bins."""
    logits, targets = random_case(500, 7, seed=3)
    metrics = tally(logits, targets)
    rows = [row for row in metrics.reliability() if row["count"]]
    assert sum(row["count"] for row in rows) == 500
    total = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
    assert metrics.calibration_error == pytest.approx(total / 500)
    assert all(row["above"] < row["confidence"] <= row["up_to"] for row in rows)
    empty = [row for row in metrics.reliability() if not row["count"]]
    assert all(row["accuracy"] is None and row["confidence"] is None for row in empty)


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 60),
    num_classes=st.integers(1, 6),
    batch_size=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_counts_do_not_depend_on_the_batches(
    num_samples: int, num_classes: int, batch_size: int, seed: int
) -> None:
    """Law: any split gives the same integers, which are those of counting one by one."""
    logits, targets = random_case(num_samples, num_classes, seed)
    whole, split = tally(logits, targets), tally(logits, targets, batch_size)
    counted = np.zeros((num_classes, num_classes), np.int64)
    for row, target in zip(logits, targets, strict=True):
        counted[int(target), int(row.argmax())] += 1
    assert (split.confusion == counted).all()
    assert (whole.confusion == counted).all()
    assert (split.bins[:2] == whole.bins[:2]).all()
    assert split.bins[2] == pytest.approx(whole.bins[2])
    assert split.loss == pytest.approx(float(F.cross_entropy(logits.double(), targets)))
    assert 0 <= split.calibration_error <= 1
    assert 0 <= split.macro_f1 <= 1


def test_a_batch_tells_what_was_predicted_and_how_surely() -> None:
    logits, targets = random_case(9, 4, seed=0)
    predicted, confidence = Tally(4, CPU).add(logits, targets)
    expected = logits.double().softmax(1).max(1)
    assert torch.equal(predicted, expected.indices)
    assert torch.equal(confidence, expected.values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("absent", [False, True])
def test_torchmetrics_agrees(seed: int, absent: bool) -> None:
    """Macro F1, precision, recall and calibration error are those of another library."""
    from torchmetrics.functional import classification as functional

    logits, targets = random_case(400, 5, seed, spread=1.5)
    if absent:  # the last class is neither true nor predicted
        targets, logits[:, -1] = targets % 4, -50.0
    metrics = tally(logits, targets)
    options = {"num_classes": 5}
    f1 = functional.multiclass_f1_score(logits, targets, average="macro", **options)
    assert metrics.macro_f1 == pytest.approx(float(f1), rel=1e-6)
    for name in ("precision", "recall", "f1_score"):
        theirs = getattr(functional, f"multiclass_{name}")(
            logits, targets, average="none", **options
        )
        ours = getattr(metrics, name.removesuffix("_score"))
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    matrix = functional.multiclass_confusion_matrix(logits, targets, **options)
    assert metrics.confusion.tolist() == matrix.tolist()
    error = functional.multiclass_calibration_error(logits, targets, n_bins=NUM_BINS, **options)
    assert metrics.calibration_error == pytest.approx(float(error), rel=1e-5)


@pytest.mark.gpu
def test_the_counts_on_the_gpu_are_those_on_the_cpu(gpu: torch.device) -> None:
    logits, targets = random_case(1000, 6, seed=1)
    there = Tally(6, gpu)
    there.add(logits.to(gpu), targets.to(gpu))
    here = tally(logits, targets)
    assert (there.metrics().confusion == here.confusion).all()
    assert there.metrics().calibration_error == pytest.approx(here.calibration_error)
