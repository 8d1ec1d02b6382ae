"""A model that computes its loss itself: how it is called and evaluated, and where its loss is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema_model import TaskConfig
from data.collate import stack
from data.samples import Collate, Example
from data.structures import split
from trainer.networks.calling import choose_call
from trainer.networks.module_state import evaluating
from trainer.objective.losses import Judged
from trainer.objective.model_loss import call_for, loss_in
from trainer.objective.tasks import build_task

TASK = build_task(TaskConfig(name="model_loss"), label_smoothing=0.0)
A, B = torch.randn(4), torch.randn(4)


def as_lists(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


class Takes(nn.Module):
    """Gives back what it was called with."""


class Two(Takes):
    def forward(self, first: Any, second: Any) -> Any:
        return first, second


class Optional(Takes):
    def forward(self, first: Any, mask: Any = None, targets: Any = None) -> Any:
        return first, targets if mask is None else mask


class One(Takes):
    def forward(self, first: Any, mask: Any = None) -> Any:
        return first, mask


@pytest.mark.parametrize(
    ("module", "sample", "collate", "gets_targets"),
    [
        (Two(), (A, B), stack, True),
        (Optional(), (A, B), stack, True),
        (One(), (A, B), stack, False),
        (Two(), (A, {"boxes": B}), as_lists, True),
        (Optional(), (A, {"boxes": B}), as_lists, True),
        (One(), (A, {"boxes": B}), as_lists, False),
    ],
)
def test_targets_go_where_a_model_takes_them(
    module: nn.Module, sample: Any, collate: Collate, gets_targets: bool
) -> None:
    """Law: by name or where something must be given; a list of samples is one argument."""
    call = choose_call(module, Example(sample, collate), None, with_targets=True)
    inputs, targets = split(collate([sample] * 3))
    first, second = call(module, inputs, targets)
    assert first is inputs
    assert second is (targets if gets_targets else None)


def test_a_list_of_samples_is_one_argument_whatever_its_length() -> None:
    class Pictures(nn.Module):
        def forward(self, pictures: Any) -> int:
            return len(pictures)

    example = Example((A, B), as_lists)
    call = choose_call(Pictures(), example, None)
    assert call(Pictures(), (A, A, A), None) == 3


L = torch.tensor(2.0)


@pytest.mark.parametrize(
    ("outputs", "loss"),
    [
        (L, 2.0),
        ({"loss": L, "logits": A}, 2.0),
        ({"classification": L, "bbox_regression": L * 2}, 6.0),
        ((A, L), 2.0),
        ({"logits": A, "temperature": L}, None),
        ({"loss": None, "logits": A}, None),
        ((L, L), None),
        ([{"boxes": A}], None),
    ],
)
def test_the_loss_among_outputs(outputs: Any, loss: float | None) -> None:
    found = loss_in(outputs)
    assert (None if found is None else float(found)) == loss


def test_outputs_without_a_loss_are_refused() -> None:
    with pytest.raises(InputError, match="temperature"):
        TASK.learn({"logits": A, "temperature": L}, B)


class Detector(nn.Module):
    """Losses while it trains, logits in an evaluation; counts, drops and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor, targets: Tensor) -> Any:
        logits = self.head(self.drop(self.norm(inputs)))
        if not self.training:
            return logits
        self.seen += len(inputs)
        return {"first": F.cross_entropy(logits, targets), "second": 1e-5 * torch.randn(())}


def test_a_model_that_gives_its_loss_while_it_trains_only_is_evaluated_too() -> None:
    """Law: with the statistics and without the dropout of an evaluation; nothing is left of it."""
    model = Detector()
    sample = (A, torch.tensor(1))
    call = call_for(TASK, model, Example(sample, stack), None)
    inputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with evaluating(model), torch.no_grad():
        found = [call(model, inputs, targets) for _ in range(2)]
        logits = model(inputs, targets)
        assert not any(part.training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(found[0], Judged)
    assert torch.equal(found[0].outputs, logits)
    measured = [TASK.report(TASK.measure(one, targets, 5).tolist())["loss"] for one in found]
    assert measured[0] == measured[1]
    assert measured[0] == pytest.approx(float(F.cross_entropy(logits, targets)), abs=1e-4)
    assert not isinstance(call(model, inputs, targets), Judged)


class TokenLosses(nn.Module):
    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return (inputs - targets).square() * (2.0 if self.training else 1.0)


def test_losses_of_outputs_in_an_evaluation_stay_what_they_are() -> None:
    model = TokenLosses()
    model.weight = nn.Parameter(torch.zeros(()))
    call = call_for(TASK, model, Example((A, B), stack), None)
    with evaluating(model):
        found = call(model, A[None], B[None])
    assert torch.equal(found, (A - B)[None].square())
