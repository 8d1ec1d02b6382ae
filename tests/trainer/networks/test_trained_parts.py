"""What is trained in which epoch, and that nobody else changes it."""

from __future__ import annotations

import pytest
from torch import nn

from configs.errors import InputError
from configs.schema_model import ModelConfig
from tests.support.changing_networks import Normed
from trainer.networks.trained_parts import TrainedParts, freeze, matches
from trainer.ranks.failures import RunFailed


def trained(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [("a.weight", True), ("a", True), ("a.*", True), ("*.weight", True), ("b", False), ("", False)],
)
def test_a_pattern_is_a_name_a_module_or_a_glob(pattern: str, fits: bool) -> None:
    assert matches("a.weight", pattern) is fits
    assert not matches("ab.weight", "a")


def test_what_is_frozen_is_not_trained_and_its_batch_norm_rests() -> None:
    """Law: a frozen batch norm gives the same outputs in every epoch: its statistics stay too."""
    model = Normed()
    freeze(model, ModelConfig(freeze=["norm", "a.*"]))
    assert trained(model) == ["b.weight", "b.bias", "c.weight", "c.bias"]
    assert not model.norm.training
    assert model.training
    assert model.b.training


def test_parts_are_trained_from_their_epoch_on_whatever_was_before() -> None:
    model = Normed()
    freeze(model, ModelConfig(freeze=["c.bias"]))
    parts = TrainedParts(model, {"norm": 3, "*.bias": 2})
    for epoch, expected in [
        (0, ["a.weight", "b.weight", "c.weight"]),
        (1, ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight"]),
        (2, ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "norm.weight", "norm.bias"]),
        (0, ["a.weight", "b.weight", "c.weight"]),
    ]:
        parts.enter(epoch)
        assert trained(model) == expected
        assert model.norm.training is (epoch == 2)
        parts.check(step=1)


def test_what_the_model_itself_froze_may_be_trained_from_an_epoch_on() -> None:
    """Law: unfreezing a backbone is said by epoch, and the optimizer knows it from the start."""
    model = Normed()
    model.a.requires_grad_(False)
    model.norm.requires_grad_(False)
    freeze(model, ModelConfig(train_from={"a": 2}))
    assert all(weight.requires_grad for weight in model.a.parameters())
    assert not model.norm.weight.requires_grad
    parts = TrainedParts(model, {"a": 2})
    parts.enter(0)
    assert "a.weight" not in trained(model)
    parts.enter(1)
    assert "a.weight" in trained(model)
    assert "norm.weight" not in trained(model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.a.requires_grad_(False), "a.weight of the model was frozen"),
        (lambda model: model.norm.requires_grad_(True), "norm.weight of the model was unfrozen"),
        (lambda model: model.add_module("d", nn.Linear(1, 1)), "d.weight of the model appeared"),
        (lambda model: model.__delattr__("b"), "b.weight of the model went away"),
    ],
)
def test_what_somebody_else_changes_is_refused_when_it_is_seen(change, words) -> None:  # type: ignore[no-untyped-def]
    """Law: the optimizer would not know of it, and nothing would be said."""
    model = Normed()
    freeze(model, ModelConfig(freeze=["norm"]))
    parts = TrainedParts(model, {})
    parts.check(step=1)
    change(model)
    with pytest.raises(RunFailed, match=f"by step 7 parameter {words}.*--model.train_from"):
        parts.check(step=7)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(freeze=["backbone.*"]),
        ModelConfig(train_from={"backbone": 2}),
        ModelConfig(freeze=["a"], train_from={"a.weight": 2}),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_with_names(config: ModelConfig) -> None:
    with pytest.raises(InputError, match=r"There are \d+ names, such as .*weight"):
        freeze(Normed(), config)
