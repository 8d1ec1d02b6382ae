"""A model that does not suit its task is refused before it trains, and left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from configs.errors import InputError
from data.facts import InputFacts
from data.normalize import Normalize
from data.samples import Batch
from trainer.networks.calling import call_whole
from trainer.objective.check_outputs import check_outputs
from trainer.objective.task import Task
from trainer.objective.tasks import classification, multilabel, regression

INPUTS = torch.ones(1, 4)
CPU = torch.device("cpu")
normalize = Normalize(InputFacts(input_shape=(4,), num_classes=3), CPU)


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
