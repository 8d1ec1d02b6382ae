"""Activations are seen however they are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.diagnosis.activity import ActivityWatch


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs * 1)


WAYS: dict[str, tuple[nn.Module, str]] = {
    "nn.ReLU": (nn.ReLU(), "relu"),
    "in place": (nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), "relu"),
    "F.relu": (Lambda(F.relu), "relu"),
    "method": (Lambda(lambda x: x.relu()), "relu"),
    "clamp": (Lambda(lambda x: x.clamp(min=0)), "relu"),
    "nn.ReLU6": (nn.ReLU6(), "relu"),
    "nn.Sigmoid": (nn.Sigmoid(), "sigmoid"),
    "torch.sigmoid": (Lambda(torch.sigmoid), "sigmoid"),
    "nn.Tanh": (nn.Tanh(), "tanh"),
    "F.tanh": (Lambda(torch.tanh), "tanh"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_it(way: str) -> None:
    model, kind = WAYS[way]
    inputs = torch.tensor([[-9.0, 9.0, -9.0, 0.5], [-9.0, -9.0, 9.0, -0.5]])
    watch = ActivityWatch()
    with watch.watching(model):
        output = model(inputs.clone())
    (found,) = watch.found.values()
    assert found.kind == kind
    assert watch.kind_of(output) == kind
    if kind == "relu":
        assert found.dead_fraction == 0.25
    else:
        assert found.saturated_fraction == 0.75


@pytest.mark.parametrize("model", [nn.GELU(), nn.LeakyReLU(), Lambda(lambda x: x.clamp(-1, 1))])
def test_what_cannot_die_is_left_alone(model: nn.Module) -> None:
    watch = ActivityWatch()
    with watch.watching(model):
        model(torch.randn(3, 4))
    assert watch.found == {}


def test_a_unit_is_alive_if_it_ever_was() -> None:
    """Law: activity adds up over calls; channels of images are units."""
    model = nn.ReLU()
    watch = ActivityWatch()
    images = torch.full((2, 3, 4, 4), -1.0)
    with watch.watching(model):
        model(images)
    images[1, 2, 0, 0] = 1.0
    with watch.watching(model):
        model(images)
    assert watch.found["model"].dead_fraction == pytest.approx(2 / 3)
