"""A run of `fit` among the others: what its directory says to every other command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.errors import InputError
from launch import compare, doctor, evaluate, export, find_lr, predict
from launch.train import main as train_main
from tests.support.own_objects import Net, net, sets, train

Main = Callable[[Sequence[str]], int]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose model and data are objects that no other program has."""
    return train(tmp_path_factory.mktemp("runs")).directory


@pytest.mark.parametrize(
    ("main", "key"),
    [
        (evaluate.main, "model.name"),
        (predict.main, "model.name"),
        (export.main, "model.name"),
        pytest.param(doctor.main, "data.dataset", marks=pytest.mark.process),
        (find_lr.main, "data.dataset"),
        (train_main, "data.dataset"),
    ],
)
def test_commands_refuse_what_only_a_program_has(
    run: Path, tmp_path: Path, main: Main, key: str
) -> None:
    """At once, with the reason and the way out, and with nothing written."""
    arguments = {
        evaluate.main: [str(run)],
        predict.main: [str(run), str(tmp_path / "none.npy")],
        export.main: [str(run), "--format=onnx", f"--output={tmp_path / 'model.onnx'}"],
        find_lr.main: [f"--config={run / 'config.yaml'}", f"--output={tmp_path / 'lr.png'}"],
    }.get(main, [f"--config={run / 'config.yaml'}", f"--output_dir={tmp_path}", "--name=other"])
    with pytest.raises(InputError) as refused:
        main(arguments)
    message = str(refused.value)
    assert message.startswith(f"{key}: given 'given:")
    assert "passed" in message
    assert "to fit() as an object" in message
    assert "write its import path here" in message
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_commands_use_a_run_whose_objects_have_import_paths(tmp_path: Path) -> None:
    directory = train(tmp_path, model=Net, data=sets, loss=None).directory
    assert evaluate.main([str(directory), "--trust_code"]) == 0
    found = json.loads((directory / "evaluation.json").read_text())
    assert found["count"] == 31


def test_compare_shows_it_beside_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train(tmp_path, name="wider", model=net(width=32), loss=None).directory
    capsys.readouterr()
    assert compare.main([str(run), str(other)]) == 0
    shown = capsys.readouterr().out
    assert "given:Net@" in shown
    assert "given:TensorDataset@" not in shown, "they have the same data"
    assert "wider" in shown


def test_what_was_given_is_written_down(run: Path) -> None:
    given = json.loads((run / "environment.json").read_text())["given"]
    facts = {entry["key"]: entry for entry in given.values()}
    assert facts.keys() == {"model.name", "data.dataset"}
    assert facts["model.name"]["type"] == "tests.support.own_objects.Net"
    assert len(facts["model.name"]["weights_sha256"]) == 64
    assert all(reference.endswith(entry["sha256"][:12]) for reference, entry in given.items())


def test_a_run_of_a_config_has_nothing_given(tmp_path: Path) -> None:
    directory = train(tmp_path, model=Net, data=sets).directory
    assert "given" not in json.loads((directory / "environment.json").read_text())
