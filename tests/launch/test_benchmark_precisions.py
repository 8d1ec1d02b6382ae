"""The precision benchmark: what it counts, and a quick run of the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.precisions import KINDS, NETWORKS, Case, Network, summarise
from tests.support.processes import launch
from trainer.networks.mlp import MLP


@pytest.mark.parametrize("hidden", [(), (20,), (30, 20)])
def test_a_step_has_the_operations_that_autograd_does(hidden: tuple[int, ...]) -> None:
    """Law: torch's own counter finds as many in a forward and a backward pass."""
    network = Network(name="", hidden=hidden, batch_size=7, steps=1)
    model = MLP((1, 28, 28), 10, hidden=hidden, dropout=0.0)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(7, 1, 28, 28)).sum().backward()
    assert counter.get_total_flops() == network.step_flops


def test_a_part_is_taken_of_the_products_of_its_own_round() -> None:
    network = Network(name="small", hidden=(256, 128), batch_size=64, steps=1)
    flops = network.step_flops
    found = summarise(Case(network, "bf16", "auto"), [10.0, 20.0], [flops * 20.0, flops * 80.0])
    assert found["part_of_products"] == {"median": 0.375, "min": 0.25, "max": 0.5}
    assert found["samples_per_second"] == {"median": 960, "min": 640, "max": 1280}


@pytest.mark.process
@pytest.mark.slow
def test_a_quick_run_measures_every_precision_of_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "precisions.json"
    finished = launch("launch/benchmark.py", "--precision", "--quick", "--output", output)
    assert finished.status == 0, finished.output
    content = json.loads(output.read_text())
    measured = [(c["network"]["name"], c["precision"], c["mode"]) for c in content["cases"]]
    assert measured == [(n.name, *kind) for n in NETWORKS["cpu"] for kind in KINDS["cpu"][n.name]]
    assert all(case["part_of_products"]["min"] > 0 for case in content["cases"])
    assert output.with_suffix(".png").stat().st_size > 1000


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.gpu
def test_a_quick_run_on_a_gpu_measures_the_compiled_ones_too(
    gpu: torch.device, tmp_path: Path
) -> None:
    output = tmp_path / "precisions.json"
    options = ("--precision", "--quick", "--device=cuda", "--output", output)
    finished = launch("launch/benchmark.py", *options)
    assert finished.status == 0, finished.output
    cases = json.loads(output.read_text())["cases"]
    assert [(c["precision"], c["mode"]) for c in cases] == [
        kind for kinds in KINDS["cuda"].values() for kind in kinds
    ]
