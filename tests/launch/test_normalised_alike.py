"""A run that goes on normalises its inputs as it did, whatever would be found in its data today."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from data.samples import Moments
from launch import evaluate
from tests.support.runs import assert_same_bits, records, train_here

VECTORS = (
    "--data.dataset=npy",
    '--model.kwargs={"hidden": [8]}',
)


def make_vectors(folder: Path) -> Path:
    random = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 72), ("test", 24)):
        inputs = random.normal(5, 1, (count, 3)) * [0.1, 1.0, 1000.0]
        np.save(folder / f"{split}_inputs.npy", inputs.astype(np.float32))
        np.save(folder / f"{split}_targets.npy", np.arange(count) % 2)
    return folder


def facts(run: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((run / "model.json").read_text())
    return {key: content[key] for key in ("mean", "std", "scale")}


def one_mean(inputs: Tensor) -> Moments:
    """As vectors were normalised once: all features alike."""
    return (float(inputs.mean()),), (float(inputs.std()),), 1.0


def test_a_run_with_one_mean_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Law: its bits are those of a run that was normalised so to the end; what uses it agrees."""
    data = make_vectors(tmp_path / "data")
    runs = [tmp_path / name / "run" for name in ("ours", "theirs")]
    with monkeypatch.context() as patch:
        patch.setattr("data.formats.npy.moments", one_mean)
        for run in runs:
            train_here(run.parent, data, *VECTORS, "--train.max_steps=3")
        train_here(runs[1].parent, data, *VECTORS, "--train.max_steps=6")
    recorded = facts(runs[0])
    train_here(runs[0].parent, data, *VECTORS, "--train.max_steps=6")
    assert "normalised as the checkpoint's run did" in caplog.text
    assert facts(runs[0]) == recorded
    assert_same_bits(*runs)
    assert evaluate.main([str(runs[0])]) == 0
    found = json.loads((runs[0] / "evaluation.json").read_text())
    assert found["loss"] in [record.get("eval/loss") for record in records(runs[0])]


def test_rows_that_changed_do_not_move_the_inputs_of_a_run(tmp_path: Path) -> None:
    data = make_vectors(tmp_path / "data")
    run = train_here(tmp_path, data, *VECTORS, "--train.max_steps=3")
    before = facts(run)
    path = data / "train_inputs.npy"
    np.save(path, np.load(path) + np.float32(10))
    train_here(tmp_path, data, *VECTORS, "--train.max_steps=6")
    assert facts(run) == before
