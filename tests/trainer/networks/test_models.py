"""Reference networks, and models named by import path."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from configs.errors import InputError
from configs.schema_model import ModelConfig
from trainer.networks.models import build_model

SEEN: dict[str, Any] = {}


class Net(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        SEEN.clear()
        SEEN.update(given)
        self.layer = nn.Linear(2, 3)


def takes_both(input_shape: Any, num_classes: int, width: int = 1) -> nn.Module:
    return Net(input_shape=input_shape, num_classes=num_classes, width=width)


def takes_classes(num_classes: int) -> nn.Module:
    return Net(num_classes=num_classes)


def takes_nothing() -> nn.Module:
    return Net()


def takes_anything(**given: Any) -> nn.Module:
    return Net(**given)


def makes_no_module(num_classes: int) -> int:
    return num_classes


def fails_inside(num_classes: int) -> nn.Module:
    raise TypeError("a bug of the user's")


def draws_from_every_generator() -> nn.Module:
    net = Net()
    with torch.no_grad():
        net.layer.bias.copy_(
            torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(()))])
        )
    return net


def build(name: str = "mlp", *, seed: int = 0, **kwargs: Any) -> nn.Module:
    config = ModelConfig(name=name, kwargs=kwargs)
    return build_model(config, input_shape=(1, 4, 3), num_classes=5, seed=seed)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"width": 48}, r"MLP\(.*hidden.*dropout"),
        ({"hidden": [0]}, "hidden"),
        ({"hidden": [8.5]}, "hidden"),
        ({"hidden": "wide"}, "hidden"),
        ({"hidden": 64}, "model.kwargs"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": "much"}, "model.kwargs"),
    ],
)
def test_arguments_a_model_cannot_take_are_refused(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        build(**kwargs)
    assert str(caught.value).startswith("model.kwargs")


def test_a_misspelt_model_is_answered_with_the_closest_one() -> None:
    with pytest.raises(InputError, match="Did you mean 'mlp'"):
        build("mpl")


def test_initial_weights_may_come_from_any_generator() -> None:
    """A user's model may draw from python's or numpy's generator: ranks must still agree."""
    path = f"{__name__}:draws_from_every_generator"
    first = parameters_to_vector(build(path, seed=3).parameters())
    random.seed(1)
    np.random.seed(1)
    assert torch.equal(parameters_to_vector(build(path, seed=3).parameters()), first)
    assert not torch.equal(parameters_to_vector(build(path, seed=4).parameters()), first)


@pytest.mark.parametrize(
    ("factory", "kwargs", "expected"),
    [
        ("takes_both", {}, {"input_shape": (1, 4, 3), "num_classes": 5, "width": 1}),
        ("takes_both", {"width": 9}, {"input_shape": (1, 4, 3), "num_classes": 5, "width": 9}),
        (
            "takes_both",
            {"num_classes": 2},
            {"input_shape": (1, 4, 3), "num_classes": 2, "width": 1},
        ),
        ("takes_classes", {}, {"num_classes": 5}),
        ("takes_nothing", {}, {}),
        ("takes_anything", {"depth": 2}, {"depth": 2}),
    ],
)
def test_a_users_factory_is_given_what_it_accepts(
    factory: str, kwargs: dict[str, Any], expected: dict[str, Any]
) -> None:
    build(f"{__name__}:{factory}", **kwargs)
    assert expected == SEEN


def test_a_factory_that_does_not_name_its_arguments_gets_none_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Law: as `torchvision.models:resnet18` passes them on to a class that has no input_shape."""
    with caplog.at_level("INFO", logger="convoy"):
        build(f"{__name__}:takes_anything", depth=2)
        build(f"{__name__}:takes_anything", depth=2, num_classes=5)
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        f"{__name__}:takes_anything names no argument num_classes and is not given one"
    ]


@pytest.mark.parametrize(
    ("factory", "kwargs", "named"),
    [
        ("takes_both", {"depth": 2}, r"takes_both\(input_shape.*num_classes.*width"),
        ("takes_nothing", {"num_classes": 2}, r"takes_nothing\(\)"),
        ("makes_no_module", {}, "torch.nn.Module"),
        ("absent", {}, "absent"),
    ],
)
def test_a_users_factory_that_does_not_fit_is_refused(
    factory: str, kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        build(f"{__name__}:{factory}", **kwargs)


def test_an_error_inside_a_users_factory_stays_the_users() -> None:
    with pytest.raises(TypeError, match="a bug of the user's"):
        build(f"{__name__}:fails_inside")
