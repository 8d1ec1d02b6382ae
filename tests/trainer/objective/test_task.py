"""Tasks: losses are sums, metrics add up over any split of the data, bad pieces are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import InputError
from configs.schema_model import TaskConfig
from trainer.objective.selection import Selection, choose_selection
from trainer.objective.task import Task
from trainer.objective.tasks import build_task


def samples(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Outputs and targets that suit a task."""
    generator = torch.Generator().manual_seed(count)
    outputs = torch.randn(count, 4, generator=generator)
    if name == "classification":
        return outputs, torch.randint(4, (count,), generator=generator)
    if name == "multilabel":
        return outputs, torch.randint(2, (count, 4), generator=generator)
    return outputs, torch.randn(count, 4, generator=generator, dtype=torch.float64)


def mean_loss(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """As torch defines it."""
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "classification": F.cross_entropy,
        "multilabel": lambda o, t: F.binary_cross_entropy_with_logits(o, t.to(o.dtype)),
        "regression": lambda o, t: F.mse_loss(o, t.to(o.dtype)),
    }
    return functions[name](outputs, targets)


class Widest:
    """A user's metric: how often the largest output is the first one."""

    width = 1
    higher_is_better = True

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == 0).sum().reshape(1)

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        return {"first": sums[0] / count}


NAMES = ("classification", "multilabel", "regression")


def mean_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """A user's loss that is the mean over the batch."""
    return F.smooth_l1_loss(outputs, targets)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_sum_over_samples_of_torchs_mean(name: str) -> None:
    task = build_task(TaskConfig(name=name), label_smoothing=0.0)
    outputs, targets = samples(name, 7)
    loss, *_ = task.learn(outputs, targets)
    torch.testing.assert_close(loss / 7, mean_loss(name, outputs, targets).float())
    assert loss.dtype is torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [1, 5, 12])
def test_metrics_of_parts_add_up_to_those_of_the_whole(name: str, cut: int) -> None:
    """A mean of means would not: the parts are of different sizes."""
    task = build_task(TaskConfig(name=name), label_smoothing=0.0)
    outputs, targets = samples(name, 13)
    whole = task.report(task.measure(outputs, targets).tolist())
    parts = [task.measure(outputs[part], targets[part]) for part in (slice(cut), slice(cut, None))]
    assert task.report(sum(parts, torch.zeros(task.width)).tolist()) == pytest.approx(whole)
    assert whole["count"] == 13
    assert whole["loss"] == pytest.approx(float(mean_loss(name, outputs.double(), targets)))


def test_the_metrics_of_labels_are_those_of_their_definitions() -> None:
    task = build_task(TaskConfig(name="multilabel"), label_smoothing=0.0)
    outputs = torch.tensor([[1.0, -1.0, 2.0], [-1.0, -2.0, 3.0]])
    targets = torch.tensor([[1, 0, 0], [0, 0, 1]])
    found = task.report(task.measure(outputs, targets).tolist())
    assert found["exact_match"] == 0.5
    assert found["label_accuracy"] == pytest.approx(5 / 6)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert found["f1"] == pytest.approx(0.8)


def test_the_metrics_of_numbers_are_those_of_their_definitions() -> None:
    task = build_task(TaskConfig(name="regression"), label_smoothing=0.0)
    outputs, targets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1.0, 4.0, 4.0])
    found = task.report(task.measure(outputs, targets).tolist())  # outputs (B, 1), targets (B,)
    assert found["mae"] == pytest.approx(4 / 3)
    assert found["mse"] == pytest.approx(8 / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(8 / 3))
    assert found["r2"] == pytest.approx(1 - 8 / 6)


@pytest.mark.parametrize(("ours", "theirs"), [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3, 1), (5, 3))])
def test_a_dimension_of_one_is_laid_beside_none(
    ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    """Law: sample by sample, never each output with each target."""
    outputs, targets = torch.randn(ours), torch.randn(theirs)
    task = build_task(TaskConfig(name="regression"), label_smoothing=0.0)
    expected = F.mse_loss(outputs.flatten(), targets.flatten())
    assert float(task.learn(outputs, targets)[0]) == pytest.approx(5 * float(expected))
    assert task.report(task.measure(outputs, targets).tolist())["mse"] == pytest.approx(
        float(expected)
    )
    for wrong in ((5, 4), (4,)):
        with pytest.raises(ValueError, match="for targets"):
            task.learn(outputs, torch.randn(wrong))


def test_label_smoothing_is_trained_with_and_not_measured() -> None:
    outputs, targets = samples("classification", 9)
    plain = build_task(TaskConfig(), label_smoothing=0.0)
    smooth = build_task(TaskConfig(), label_smoothing=0.3)
    assert smooth.learn(outputs, targets)[0] != plain.learn(outputs, targets)[0]
    assert torch.equal(smooth.measure(outputs, targets), plain.measure(outputs, targets))


@pytest.mark.parametrize(
    "path",
    [f"{__name__}:mean_error", "torch.nn.functional:smooth_l1_loss", "torch.nn:SmoothL1Loss"],
)
def test_a_loss_may_be_a_mean_a_function_or_a_module_of_torch(path: str) -> None:
    task = build_task(TaskConfig(name="regression", loss=path), label_smoothing=0.0)
    outputs, targets = samples("regression", 6)
    loss, *_ = task.learn(outputs, targets)
    torch.testing.assert_close(loss / 6, F.smooth_l1_loss(outputs, targets.float()))


WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def own_task() -> Task:
    """A task of one's own with class weights, which are float32."""
    return Task(
        loss=lambda outputs, targets: F.cross_entropy(
            outputs, targets, weight=WEIGHTS, reduction="sum"
        )
    )


def test_a_task_of_ones_own_is_evaluated_in_the_type_it_is_trained_in() -> None:
    task = build_task(TaskConfig(name=f"{__name__}:own_task"), label_smoothing=0.0)
    outputs, targets = torch.randn(6, 3), torch.arange(6) % 3
    trained = float(task.learn(outputs, targets)[0]) / 6
    assert task.report(task.measure(outputs, targets).tolist())["loss"] == pytest.approx(trained)


def test_a_metric_of_the_user_is_reported_with_the_others() -> None:
    config = TaskConfig(metrics=[f"{__name__}:Widest"])
    task = build_task(config, label_smoothing=0.0)
    outputs, targets = samples("classification", 9)
    found = task.report(task.measure(outputs, targets).tolist())
    assert found["first"] == float((outputs.argmax(1) == 0).double().mean())
    assert choose_selection(task, "first", "auto") == Selection("first", higher=True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (TaskConfig(name="regresion"), "regression"),
        (TaskConfig(name="math:sqrt"), "task.kwargs"),
        (TaskConfig(loss="math:pi"), "reduction='none'"),
        (TaskConfig(metrics=["math:sqrt"]), "higher_is_better"),
    ],
)
def test_what_does_not_keep_its_protocol_is_refused_with_the_protocol(
    config: TaskConfig, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        build_task(config, label_smoothing=0.0)


def test_label_smoothing_belongs_to_classification() -> None:
    with pytest.raises(InputError, match="label_smoothing"):
        build_task(TaskConfig(name="regression"), label_smoothing=0.1)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("classification", torch.tensor(0.5)),
        ("classification", torch.tensor([0, 1])),
        ("multilabel", torch.tensor(1)),
        ("regression", torch.tensor(3)),
    ],
)
def test_targets_of_another_task_are_refused(name: str, target: Tensor) -> None:
    with pytest.raises(InputError, match=f"task.name={name}"):
        build_task(TaskConfig(name=name), label_smoothing=0.0).check_target(target)


def test_the_best_metric_must_be_one_that_is_reported() -> None:
    task = build_task(TaskConfig(), label_smoothing=0.0)
    with pytest.raises(InputError, match="loss, accuracy"):
        choose_selection(task, "f1", "auto")
    assert choose_selection(task, None, "auto") == Selection("accuracy", higher=True)
    assert choose_selection(task, "loss", "auto") == Selection("loss", higher=False)
    assert choose_selection(task, "loss", "max") == Selection("loss", higher=True)


@pytest.mark.parametrize("higher", [True, False])
def test_only_what_is_better_improves(higher: bool) -> None:
    best, sign = Selection("value", higher=higher), 1 if higher else -1
    assert best.improves({"value": 0.0}, {})
    assert best.improves({"value": sign * 2.0}, {"value": sign * 1.0})
    assert not best.improves({"value": sign * 1.0}, {"value": sign * 1.0})
    assert not best.improves({"value": sign * 1.0}, {"value": sign * 2.0})
    assert not best.improves({"value": math.nan}, {})
    assert not best.improves({"value": sign * 2.0}, {"value": sign * 1.0}, by=1.5)
