"""The doctor as its users call it: exit status, output, what it leaves alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from launch.doctor import main
from tests.support.data_sets import make_idx
from tests.support.processes import launch

Arguments = Callable[..., list[str]]
PLANTED = "tests.programs.planted"


def read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    return {finding["check"]: finding for finding in content["findings"]}


@pytest.mark.process
def test_a_healthy_run_passes_and_is_left_alone(small: Arguments, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    finished = launch("launch/doctor.py", *small("run"), f"--json={output}")
    assert finished.status == 0, finished.output
    found = read(output)
    bad = [c for c, f in found.items() if f["group"] in ("data", "training") and f["why"]]
    assert bad == []
    assert {finding["group"] for finding in found.values()} == {"machine", "data", "training"}
    assert "0 problems" in finished.stdout.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert json.loads(output.read_text())["environment"]["packages"]["torch"]


@pytest.mark.process
def test_data_of_a_single_class_are_a_problem_and_no_traceback(tmp_path: Path) -> None:
    files, output = make_idx(tmp_path / "idx", num_classes=1), tmp_path / "found.json"
    finished = launch(
        "launch/doctor.py",
        "--config=idx",
        f"--data.root={files}",
        f"--output_dir={tmp_path}",
        "--steps=20",
        f"--json={output}",
    )
    assert finished.status == 1, finished.output
    assert "Traceback" not in finished.output
    classes = read(output)["classes"]
    assert classes["level"] == "problem"
    assert classes["seen"] == "every sample is of the same class"
    assert "every sample is of class 0" in finished.stderr


@pytest.mark.process
def test_two_ranks_with_different_data_and_weights(tmp_path: Path) -> None:
    """The ranks themselves are fine: only what they would start from is not."""
    output = tmp_path / "found.json"
    finished = launch(
        "launch/doctor.py",
        f"--data.dataset={PLANTED}:different",
        f"--model.name={PLANTED}:Net",
        '--model.kwargs={"fault": "unseeded"}',
        "--steps=20",
        f"--output_dir={tmp_path}",
        f"--json={output}",
        ranks=2,
    )
    assert finished.status == 1, finished.output
    found = read(output)
    assert [c for c, f in found.items() if f["level"] == "problem"] == [
        "same_start",
        "same_weights",
    ]
    for fact in ("first samples", "initial weights"):
        assert f"{fact}: rank 1 has" in found["same_start"]["seen"]
    assert [row["rank"] for row in found["placement"]["table"]] == [0, 1]
    assert len(found["bandwidth"]["table"]) == 4
    assert "cluster/same_start, training/same_weights" in finished.stdout.splitlines()[-1]
    assert "change: install the same environment" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps=3"], "--steps: given 3"),
        (["--json=/nowhere/x.json"], "--json: given"),
        (["--optimizer.lrr=1"], "Did you mean 'optimizer.lr'"),
    ],
)
def test_bad_options_are_refused_before_any_work(arguments: list[str], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        main(arguments)


@pytest.mark.process
def test_bad_input_gives_status_2(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    options = ["--config=idx", "--data.root=/nowhere", f"--json={output}"]
    finished = launch("launch/doctor.py", *options, f"--output_dir={tmp_path}")
    assert finished.status == 2
    assert "error: data.root" in finished.stderr
    assert "Traceback" not in finished.output
    assert not output.exists()
