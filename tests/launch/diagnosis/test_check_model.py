"""Planted faults in models are found; nothing is said of sound ones."""

from __future__ import annotations

import pytest

from tests.launch.diagnosis.examining import examine, healthy, levels, planted_config

FAULTS = {
    "softmax": ("outputs", "problem", "softmax before cross-entropy"),
    "log-softmax": ("outputs", "warning", "log-softmax before cross-entropy"),
    "sigmoid": ("outputs", "problem", "sigmoid before cross-entropy"),
    "relu": ("outputs", "problem", "ReLU before cross-entropy"),
    "tanh": ("outputs", "problem", "tanh before cross-entropy"),
    "tuple": ("forward", "problem", "returns tuple"),
    "too few outputs": ("forward", "problem", "(24, 4), expected logits (24, 5)"),
    "shape": ("forward", "problem", "planted.py"),
    "always dropout": ("eval_mode", "problem", "differ"),
    "mixes samples": ("independent_samples", "problem", "with the rest of its batch"),
    "left behind": ("registered", "warning", "on the same device"),
    "plain tensor": ("registered", "warning", "scale"),
    "plain list": ("registered", "problem", "hidden"),
    "frozen": ("frozen", "warning", "layers.1.weight"),
    "unused": ("reached", "problem", "unused.weight"),
    "detached": ("reached", "problem", "layers.1.weight"),
    "confident": ("initial_loss", "warning", "ln(5) = 1.61"),
    "nan": ("initial_loss", "problem", "nan"),
    "unseeded": ("same_weights", "problem", "different weights"),
}
CONSEQUENCES = {"overfit_one_batch", "learning_rate", "dead_units"}
"""What a model that cannot learn also fails at."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    check, level, words = FAULTS[fault]
    found = examine(planted_config(fault=fault), steps=24)
    assert found[check].level == level
    assert words in found[check].seen
    assert levels(found).keys() - CONSEQUENCES == {check}


def test_a_sound_model_gives_no_finding() -> None:
    assert levels(healthy()) == {}
    assert "1.6" in healthy()["initial_loss"].seen
