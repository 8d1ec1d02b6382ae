"""What short trainings show of planted faults, and that sound runs of every kind pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from configs.load import load_config
from tests.launch.diagnosis.examining import examine, healthy, levels, planted_config

DEEP = {
    "vanishing": ({"activation": "sigmoid"}, "gradients", "problem", "hidden.0.weight"),
    "exploding": ({"activation": "relu", "gain": 20}, "gradients", "problem", "exploding"),
    "saturated": ({"activation": "tanh", "gain": 30}, "saturation", "problem", "%"),
    "saturated sigmoid": ({"activation": "sigmoid", "gain": 30}, "saturation", "problem", "%"),
}


@pytest.mark.parametrize("fault", DEEP)
def test_gradients_and_activations(fault: str) -> None:
    kwargs, check, level, words = DEEP[fault]
    found = examine(planted_config(model="Deep", **kwargs), steps=24)
    assert found[check].level == level
    assert words in found[check].seen


def test_dead_units() -> None:
    found = examine(planted_config(fault="dead"), steps=24)
    assert found["dead_units"].level == "problem"
    assert "layers.2 100%" in found["dead_units"].seen
    assert found["overfit_one_batch"].level == "problem"


@pytest.mark.parametrize(
    ("optimizer", "lr", "direction"),
    [
        ("adam", 1e-8, "too low"),
        ("adam", 1e-5, "too low"),
        ("adam", 10.0, "too high"),
        ("sgd", 1e-6, "too low"),
        ("sgd", 10.0, "too high"),
    ],
)
def test_a_learning_rate_far_off(optimizer: str, lr: float, direction: str) -> None:
    """Law: it is a problem, and the rate that is suggested passes."""
    found = examine(planted_config(optimizer=optimizer, lr=lr))
    finding = found["learning_rate"]
    assert finding.level == "problem"
    assert direction in finding.seen
    flag, value = finding.change.split()
    assert flag == "--optimizer.lr"
    better = examine(planted_config(optimizer=optimizer, lr=float(value)))
    assert better["learning_rate"].level != "problem"


def test_updates_out_of_proportion() -> None:
    found = examine(planted_config(optimizer="sgd", lr=1e-6), steps=24)
    assert found["updates"].level == "warning"
    assert "below 1e-05 in all layers" in found["updates"].seen


def test_fp16_is_named_when_fp32_would_do() -> None:
    found = examine(planted_config(fault="overflow", dtype="fp16"), steps=24)
    assert found["precision"].level == "problem"
    assert "bf16" in found["precision"].change


HEALTHY: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.05},
    "slow": {"lr": 3e-4},
    "bf16": {"dtype": "bf16"},
    "fp16": {"dtype": "fp16"},
    "one-cycle": {"lr": 0.01, "schedule": {"name": "one_cycle"}},
    "warm-up": {"schedule": {"name": "cosine", "warmup_steps": 200}},
    "deep relu": {"model": "Deep", "activation": "relu", "depth": 3},
    "deep tanh": {"model": "Deep", "activation": "tanh", "depth": 4},
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_run_gives_no_finding(kind: str) -> None:
    assert levels(examine(planted_config(**HEALTHY[kind]))) == {}


def test_the_small_run_gives_no_finding(small: Callable[..., list[str]]) -> None:
    """With dropout, batch norm, clipping, averaging, smoothing and accumulation too."""
    config = load_config(small(), prog="test", description="")
    assert levels(examine(config)) == {}
    fancy = replace(
        config,
        model=replace(config.model, kwargs={"hidden": [24, 16], "batch_norm": True}),
        train=replace(
            config.train, clip_norm=1.0, ema_decay=0.99, label_smoothing=0.1, micro_batch_size=12
        ),
    )
    assert levels(examine(fancy)) == {}


def test_the_table_has_every_layer() -> None:
    table = healthy()["gradients"].table
    assert [row["weight"] for row in table] == [f"layers.{n}.weight" for n in (1, 3, 5)]
    assert all(1e-5 < row["update / weight"] < 0.1 for row in table)
