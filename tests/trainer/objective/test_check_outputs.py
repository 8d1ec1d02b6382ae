"""A model that does not suit its task is refused before it trains, and left as it was."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from data.collate import stack
from data.facts import InputFacts
from data.normalize import Normalize
from data.samples import Batch
from trainer.networks.calling import call_whole
from trainer.objective.check_outputs import check_loss, check_outputs
from trainer.objective.losses import Loss, summed
from trainer.objective.task import Task
from trainer.objective.tasks import classification, multilabel, regression

INPUTS = torch.ones(1, 4)
CPU = torch.device("cpu")
normalize = Normalize(InputFacts(input_shape=(4,), num_classes=3), CPU)
normalize_not = Normalize(InputFacts(input_shape=(9,), num_classes=9), CPU)


class Pair(nn.Linear):
    """A model that returns two things."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(inputs), inputs


@pytest.mark.parametrize(
    ("model", "target", "task", "given"),
    [
        (nn.Linear(4, 3), torch.tensor([3]), classification(), r"\(1, 3\)"),
        (nn.Linear(4, 3), torch.ones(1, 2), multilabel(), r"\(1, 3\)"),
        (nn.Linear(4, 3), torch.ones(1), regression(), r"\(1, 3\)"),
    ],
)
def test_outputs_that_the_task_cannot_measure_are_refused_with_their_shape(
    model: nn.Module, target: Tensor, task: Task, given: str
) -> None:
    with pytest.raises(InputError, match=rf"task\.name={task.name}.*{given}.*{task.outputs[:6]}"):
        check_outputs(model, call_whole, normalize, Batch(INPUTS, target, 1), task)


def test_outputs_that_are_no_tensor_are_refused_with_what_they_are() -> None:
    with pytest.raises(InputError, match=r"tuple \(\(1, 3\) float32, \(1, 4\) float32\)"):
        check_outputs(
            Pair(4, 3),
            call_whole,
            normalize,
            Batch(INPUTS, torch.tensor([2]), 1),
            classification(),
        )


def test_numbers_are_not_broadcast() -> None:
    """Law: what torch warns of is refused, whoever calls its loss."""
    for loss in (
        F.mse_loss,
        nn.SmoothL1Loss(),
        lambda outputs, targets: F.l1_loss(outputs, targets),
    ):
        task, batch = Task(loss=summed(loss)), Batch(INPUTS, torch.ones(1), 1)
        with pytest.raises(InputError, match=r"Using a target size.*given '\(1, 3\) float32"):
            check_outputs(nn.Linear(4, 3), call_whole, normalize, batch, task)


SCALE = nn.Parameter(torch.ones(3))
HEAD = nn.Linear(3, 3)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: F.cross_entropy(outputs * SCALE, targets),
        partial(lambda head, outputs, targets: F.cross_entropy(head(outputs), targets), HEAD),
    ],
)
def test_a_loss_that_could_learn_is_refused_and_one_that_is_frozen_is_not(
    loss: Loss, frozen: bool
) -> None:
    """Law: whatever holds the weights, a closure, an object or the task itself."""
    for weight in (SCALE, *HEAD.parameters()):
        weight.requires_grad_(not frozen)
    batch, task = Batch(INPUTS, torch.tensor([2]), 1), Task(loss=summed(loss))
    task = replace(task, measured_loss=lambda outputs, targets: outputs.sum())
    with nullcontext() if frozen else pytest.raises(InputError, match="nobody trains or saves"):
        check_outputs(nn.Linear(4, 3), call_whole, normalize, batch, task)


def test_a_mean_over_what_counts_is_seen_where_all_outputs_are_alike() -> None:
    """Law: at the initial weights of a language model one mean is as good as another."""
    model = nn.Embedding(9, 9)
    nn.init.normal_(model.weight, std=1e-4)
    lengths = [1, 2, 3, 4, 5, 6]
    samples = [(torch.arange(9), torch.arange(9).where(torch.arange(9) < n, -100)) for n in lengths]

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    def trial(loss: Loss) -> None:
        check_loss(model, call_whole, normalize_not, samples, stack, Task(loss=summed(loss)))

    with pytest.raises(InputError, match="the mean over samples"):
        trial(own)
    trial(lambda outputs, targets: F.cross_entropy(outputs.mT, targets, reduction="none"))
    trial(
        lambda outputs, targets: F.binary_cross_entropy(
            outputs.sigmoid(), targets.ge(0).float()[..., None].expand_as(outputs), reduction="none"
        )
    )


@pytest.mark.parametrize(
    ("size", "target", "task"),
    [
        (3, torch.tensor([2]), classification()),
        (2, torch.ones(1, 2), multilabel()),
        (1, torch.ones(1), regression()),
    ],
)
def test_outputs_that_suit_are_accepted_and_the_model_stays_as_it_was(
    size: int, target: Tensor, task: Task
) -> None:
    """Law: batch statistics, modes and gradients are those from before."""
    norm, frozen = nn.BatchNorm1d(4), nn.Dropout(0.5).eval()
    model = nn.Sequential(norm, frozen, nn.Linear(4, size))
    check_outputs(model, call_whole, normalize, Batch(INPUTS, target, 1), task)
    assert int(norm.num_batches_tracked or 0) == 0
    assert model.training
    assert not frozen.training
    assert all(parameter.grad is None for parameter in model.parameters())
