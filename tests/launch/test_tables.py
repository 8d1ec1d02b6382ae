"""A run on a table is used as any other, its features normalised one by one wherever it goes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import InputError
from launch import evaluate, export, predict
from tests.support.processes import ROOT
from tests.support.runs import series, train_here

pytest.importorskip("pyarrow", reason="pyarrow is missing: tables are NOT tested")

WINE = ROOT / "data" / "embedded" / "wine"
RECIPE = ("--config=wine", "--train.epochs=15")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_here(tmp_path_factory.mktemp("wine"), WINE, *RECIPE)


def measurements() -> tuple[list[str], np.ndarray]:
    """Names of the features, and float32 `(178, 13)`."""
    with (WINE / "wine.csv").open() as file:
        names, *rows = csv.reader(file)
    return names[:-1], np.array([row[:-1] for row in rows], np.float32)


def test_the_recipe_learns_and_evaluation_says_so(run: Path) -> None:
    assert series(run, "eval/accuracy")[-1] > 0.9
    assert evaluate.main([str(run)]) == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert found["accuracy"] in series(run, "eval/accuracy")
    assert found["classes"] == ["A", "B", "C"]
    assert json.loads((run / "model.json").read_text())["features"] == measurements()[0]


def test_arrays_of_features_are_predicted_and_exported_with_each_ones_moments(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the exported model takes raw features, and gives the probabilities of the command."""
    _, rows = measurements()
    np.save(tmp_path / "rows.npy", rows)
    capsys.readouterr()
    assert predict.main([str(run), str(tmp_path / "rows.npy"), "--as=csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    ours = np.array([[float(row[f"p_{name}"]) for name in "ABC"] for row in table])
    file = tmp_path / "wine.pt2"
    assert export.main([str(run), "--format=torch_export", f"--output={file}"]) == 0
    outputs = torch.export.load(file).module()(torch.from_numpy(rows))
    np.testing.assert_allclose(outputs.detach().softmax(1).numpy(), ours, atol=1e-5)


def test_a_table_to_predict_is_refused_with_what_to_give_instead(run: Path) -> None:
    with pytest.raises(InputError, match=r"given 'a table', expected an array.*model\.json"):
        predict.main([str(run), str(WINE / "wine.csv")])
