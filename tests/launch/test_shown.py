"""Names that a run directory brings reach neither the terminal nor a spreadsheet as commands."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.errors import InputError
from configs.visible import LogLines
from launch import compare, evaluate, predict
from launch.diagnosis.findings import Finding, show
from launch.using.rows import show_rows
from tests.support.sample_runs import write_run

HOSTILE = "=\x1b]0;owned\x07[bold red]\x1b[2J$\\frac{\u202e"


def is_harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\u202e") and "[bold red]" in text


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A run whose classes were named by somebody else."""
    folder = Path(shutil.copytree(trained_run, tmp_path / "run", symlinks=True))
    path = folder / "model.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"classes": [f"{HOSTILE}{n}" for n in range(5)]}))
    return folder


def test_evaluate_shows_and_draws_any_class(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("COLUMNS", "300")
    assert evaluate.main([str(run), "--png"]) == 0
    assert is_harmless(capsys.readouterr().out)


def test_predict_shows_and_writes_any_class(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    images = tmp_path / "=\x1b[31m.npy"
    np.save(images, np.zeros((3, 1, 9, 7), dtype=np.uint8))
    row = {"input": str(images), "index": 0, "name": HOSTILE, "probability": 1.0}
    show_rows(iter([row | {"class": 0, "probabilities": [1.0]}]), [HOSTILE])
    assert is_harmless(capsys.readouterr().out)
    monkeypatch.chdir(tmp_path)
    assert predict.main([str(run), images.name, "--output=rows.csv"]) == 0
    with Path("rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["input"] for row in rows} == {f"'{images.name}"}
    assert all(row["name"].startswith("'=") for row in rows)
    assert all(0 <= float(row["probability"]) <= 1 for row in rows)


def test_compare_shows_and_writes_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    config = {"name": HOSTILE, "model": {"name": HOSTILE}}
    first = write_run(tmp_path / "a", config=config, status=HOSTILE)
    second = write_run(tmp_path / "b", config={"model": {"name": "mlp"}, "seed": -3})
    table = tmp_path / "runs.csv"
    assert compare.main([str(first), str(second), f"--csv={table}"]) == 0
    assert is_harmless(capsys.readouterr().out)
    with table.open(newline="") as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    assert rows[str(first)]["name"] == f"'{HOSTILE}"
    assert rows[str(first)]["config model.name"].startswith("'=")
    assert float(rows[str(second)]["config seed"]) == -3  # a number stays one


def test_findings_and_log_lines_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    found = Finding(
        group="data",
        check="labels",
        level="warning",
        seen=HOSTILE,
        why=HOSTILE,
        change=HOSTILE,
        table=[{HOSTILE: HOSTILE}],
    )
    show([found])
    assert is_harmless(capsys.readouterr().out)
    record = logging.LogRecord("convoy", logging.INFO, "", 0, "at %s", (HOSTILE,), None)
    LogLines().handle(record)
    assert is_harmless(capsys.readouterr().err)


def test_a_message_is_shown_as_it_is(run: Path) -> None:
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"]["name"] = HOSTILE
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as refused:
        evaluate.main([str(run)])
    assert is_harmless(str(refused.value))
