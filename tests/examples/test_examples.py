"""The examples outside the package: other tasks, by import path, from any working directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.processes import ROOT, launch, train
from tests.support.runs import series

pytestmark = pytest.mark.process

EXAMPLES = ROOT / "examples"


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def test_the_regression_learns_down_to_its_noise(tmp_path: Path) -> None:
    """The squared error cannot be below the variance of the noise, 0.05 squared."""
    train(f"--config={EXAMPLES / 'polynomial.yaml'}", f"--output_dir={tmp_path}")
    found = summary(tmp_path / "polynomial")
    assert 0.002 < found["eval/mse"] < 0.006
    assert found["eval/loss"] == pytest.approx(found["eval/mse"])
    assert found["eval/r2"] > 0.97
    assert 0.85 < found["eval/within_noise"] <= 1
    losses = series(tmp_path / "polynomial", "eval/loss")
    assert found["best/loss"] == min(losses)
    assert series(tmp_path / "polynomial", "train/mae")[-1] < 0.1


def test_the_labels_are_found(tmp_path: Path) -> None:
    train(f"--config={EXAMPLES / 'tags.yaml'}", f"--output_dir={tmp_path}")
    found = summary(tmp_path / "tags")
    assert found["eval/f1"] > 0.99
    assert found["eval/exact_match"] > 0.98


def test_two_ranks_measure_the_same_and_learn_the_same(tmp_path: Path) -> None:
    """Law: without dropout the number of ranks moves nothing but the last bits."""
    for ranks in (1, 2):
        train(
            f"--config={EXAMPLES / 'polynomial.yaml'}",
            f"--output_dir={tmp_path}",
            f"--name=ranks{ranks}",
            "--train.epochs=2",
            ranks=ranks,
        )
    one, two = (summary(tmp_path / f"ranks{ranks}") for ranks in (1, 2))
    for key in ("eval/mae", "eval/mse", "eval/r2"):
        assert two[key] == pytest.approx(one[key], rel=1e-4)


def test_data_of_another_task_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    finished = launch(
        "launch/train.py",
        f"--config={EXAMPLES / 'polynomial.yaml'}",
        f"--output_dir={tmp_path}",
        "--task.name=classification",
    )
    assert finished.status == 2
    assert "float32 of shape ()" in finished.output
    assert "whole number" in finished.output
    assert not (tmp_path / "polynomial").exists()


def test_a_model_whose_outputs_do_not_suit_is_refused(tmp_path: Path) -> None:
    finished = launch(
        "launch/train.py",
        f"--config={EXAMPLES / 'polynomial.yaml'}",
        f"--output_dir={tmp_path}",
        "--model.name=torch.nn:Linear",
        '--model.kwargs={"in_features": 2, "out_features": 3}',
    )
    assert finished.status == 2
    assert "(1, 3)" in finished.output
    assert "as many numbers as the targets have" in finished.output


OUT_OF_MEMORY_ON_RANK_1 = '''
"""A network for which rank 1 has memory for four samples."""

import os

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(63, num_classes))

    def forward(self, inputs):
        if os.environ.get("RANK") == "1" and self.training and len(inputs) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layers(inputs)
'''


def test_all_ranks_take_the_micro_batch_of_the_one_with_least_memory(
    tmp_path: Path, idx_folder: Path
) -> None:
    (tmp_path / "narrow.py").write_text(OUT_OF_MEMORY_ON_RANK_1)
    (tmp_path / "narrow.yaml").write_text("model: {name: 'narrow:Net'}\ndata: {dataset: idx}\n")
    finished = train(
        f"--config={tmp_path / 'narrow.yaml'}",
        f"--data.root={idx_folder}",
        f"--output_dir={tmp_path}",
        "--name=run",
        "--train.global_batch_size=24",
        "--train.max_steps=3",
        "--train.auto_batch=true",
        ranks=2,
    )
    assert "micro-batches of 4 samples fit, 6 in a global batch" in finished.output
    saved = (tmp_path / "run/config.yaml").read_text()
    assert "micro_batch_size: 4" in saved
    assert "global_batch_size: 24" in saved


def test_a_command_that_knows_classes_only_says_so(tmp_path: Path) -> None:
    config = f"--config={EXAMPLES / 'polynomial.yaml'}"
    train(config, f"--output_dir={tmp_path}", "--train.max_steps=2")
    run = tmp_path / "polynomial"
    inputs = tmp_path / "inputs.npy"
    np.save(inputs, np.zeros((1, 2), dtype=np.float32))
    own = "--trust_code"  # the module of the example
    finished = launch("launch/predict.py", run, inputs, own, env={"PYTHONPATH": str(EXAMPLES)})
    assert finished.status == 2, finished.output
    assert "regression" in finished.output
    assert "Traceback" not in finished.output
