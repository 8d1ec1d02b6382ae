"""The doctor knows every task and structure, and attention that has not begun to attend."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_config
from launch.diagnosis.depths import noting_depths
from launch.diagnosis.findings import Finding
from tests.launch.diagnosis.examining import examine, levels
from tests.support.attention import Attention, ids
from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples"
ATTENTION = "tests.support.attention"
SLOW = ("gan", "segmentation", "tied", "tags", "lines", "polynomial")


def of_file(name: str, *more: str) -> dict[str, Finding]:
    return examine(
        load_config([f"--config={EXAMPLES / name}.yaml", *more], prog="", description="")
    )


def of_training(found: dict[str, Finding]) -> dict[str, str]:
    """The checks that need attention, but for the pace, which is the machine's affair."""
    return {check: level for check, level in levels(found).items() if check != "loading"}


def attention(*more: str) -> dict[str, Finding]:
    words = [
        f"--data.dataset={ATTENTION}:ids",
        f"--model.name={ATTENTION}:Attention",
        "--model.kwargs={}",
        "--train.global_batch_size=32",
        "--optimizer.name=adamw",
        "--optimizer.lr=1e-3",
    ]
    return examine(load_config([*words, *more], prog="", description=""))


@pytest.mark.parametrize(
    "name",
    [
        "sentences", "autoencoder", "detection", "contrastive", "pairs",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)  # fmt: skip
def test_a_sound_run_of_any_task_gives_no_finding(name: str, tmp_path: Path) -> None:
    found = of_file(name, *([f"--data.root={tmp_path}"] if name == "lines" else []))
    expected = {"contrastive": {"independent_samples": "warning"}}.get(name, {})
    assert of_training(found) == expected
    assert {"inputs", "loading", "gradients", "reached", "overfit_one_batch"} <= found.keys()


@pytest.mark.parametrize("data", ["ids", "named"])
def test_attention_at_its_start_is_no_fault(data: str) -> None:
    """Law: its queries get less than a thousandth of the largest gradient, and it learns."""
    found = attention(f"--data.dataset={ATTENTION}:{data}")
    norms = {row["weight"]: row["gradient"] for row in found["gradients"].table}
    assert norms["layers.0.query.weight"] < 1e-3 * max(norms.values())
    assert of_training(found) == {}


def test_the_depth_of_a_weight_is_where_it_is_used() -> None:
    """Law: side by side what is called with the same tensor; else in the order of the calls."""
    model = Attention(depth=1)
    with noting_depths(model) as depths:
        model(ids(4)[0].tensors[0])
    names = ("words", "layers.0.query", "layers.0.key", "layers.0.value", "layers.0.out", "head")
    found = [depths[f"{name}.weight"] for name in names]
    assert found[0] < found[1] == found[2] == found[3] < found[4] < found[5]
    assert set(depths) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("data", "model", "check", "words"),
    [
        ("named", "Mixing", "independent_samples", "with the rest of its batch"),
        ("spoilt", "Attention", "inputs", "1 of 1,200 train samples hold NaN or infinity"),
        ("named", "Strict", "forward", "expected what Strict.forward(tokens) takes"),
        ("named", "Unused", "reached", "no gradient for spare.bias, spare.weight"),
    ],
)
def test_a_fault_is_found_in_batches_with_names(
    data: str, model: str, check: str, words: str
) -> None:
    found = attention(f"--data.dataset={ATTENTION}:{data}", f"--model.name={ATTENTION}:{model}")
    assert found[check].level == "problem"
    assert words in found[check].seen
