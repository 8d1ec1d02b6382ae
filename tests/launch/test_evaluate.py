"""Evaluating a run afterwards says what training said, and more; bad input is one message."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs.errors import InputError
from data.datasets import load_datasets
from data.formats.idx import read_idx
from launch import evaluate as evaluate_command
from launch import export as export_command
from launch import predict as predict_command
from launch.evaluate import main
from launch.using.assess import assess
from launch.using.trained import load_trained
from tests.programs.recorder import RECORDED
from tests.support.data_sets import make_idx
from tests.support.idx_files import write_idx
from tests.support.processes import launch
from tests.support.runs import records, train_here


def evaluate(run: Path, output: Path, *more: object) -> dict[str, Any]:
    assert main([str(run), f"--output={output}", *map(str, more)]) == 0
    content: dict[str, Any] = json.loads((output / "evaluation.json").read_text())
    return content


def recorded_at(run: Path, step: int) -> dict[str, Any]:
    """What training recorded of its evaluation at a step."""
    return next(r for r in records(run) if r["step"] == step and "eval/loss" in r)


@pytest.mark.process
def test_the_command_prints_a_table_and_writes_beside_the_run(
    trained_run: Path, tmp_path: Path
) -> None:
    """From any folder; a neighbour of the script shadows nothing."""
    run = shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    finished = launch("launch/evaluate.py", "run", "--png", cwd=tmp_path)
    assert finished.status == 0, finished.output
    content = json.loads((run / "evaluation.json").read_text())
    assert f"accuracy {content['accuracy']:.2%} ({content['correct']} of 101)" in finished.stdout
    assert "most often taken for" in finished.stdout
    for name in ("confusion_matrix.png", "mistakes.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("checkpoint", ["latest", "best"])
def test_counts_and_loss_are_those_that_training_recorded(
    trained_run: Path, tmp_path: Path, checkpoint: str
) -> None:
    """Law: the same integers, and the same loss to the last bit."""
    content = evaluate(trained_run, tmp_path, f"--checkpoint={checkpoint}")
    recorded = recorded_at(trained_run, content["step"])
    for key in ("correct", "count", "accuracy", "loss"):
        assert content[key] == recorded[f"eval/{key}"]


def test_an_average_in_bfloat16_with_batch_norm_is_evaluated_as_in_training(
    tmp_path: Path, idx_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: the logits have the bits that training had, batch by batch."""
    run = train_here(
        tmp_path,
        idx_folder,
        "--model.name=tests.programs.recorder:Recorder",
        '--model.kwargs={"hidden": [16], "dropout": 0.2, "batch_norm": true}',
        "--train.ema_decay=0.9",
        "--train.max_steps=20",
        "--precision.dtype=bf16",
    )
    assert f"Next: convoy evaluate {run} --trust_code for details" in capsys.readouterr().out
    trained_logits = torch.cat(RECORDED[-3:])
    RECORDED.clear()
    content = evaluate(run, tmp_path, "--checkpoint=latest", "--trust_code")
    assert content["weights"] == "average"
    assert torch.equal(torch.cat(RECORDED), trained_logits)
    RECORDED.clear()
    recorded = recorded_at(run, 20)
    assert (content["correct"], content["loss"]) == (
        recorded["eval/correct"],
        recorded["eval/loss"],
    )


@pytest.mark.parametrize("batch_size", [1, 7, 101, 5000])
def test_counts_do_not_depend_on_the_batch_size(
    trained_run: Path, tmp_path: Path, batch_size: int
) -> None:
    content = evaluate(trained_run, tmp_path, f"--evaluate.batch_size={batch_size}")
    recorded = recorded_at(trained_run, content["step"])
    assert content["correct"] == recorded["eval/correct"]
    assert np.sum(content["confusion_matrix"]) == content["count"] == 101


def test_the_record_is_what_the_logits_say(trained_run: Path, tmp_path: Path) -> None:
    """Confusion matrix, per-class list and mistakes, from the logits of the whole test set."""
    content = evaluate(trained_run, tmp_path, "--mistakes=4", "--checkpoint=latest")
    trained = load_trained(trained_run, checkpoint="latest")
    folder = Path(str(trained.config.data.root))
    images = torch.from_numpy(read_idx(folder / "test-images-idx3-ubyte"))[:, None]
    targets = read_idx(folder / "test-labels-idx1-ubyte").astype(int)
    probabilities = F.softmax(trained.logits(images).double(), 1).numpy()
    predicted = probabilities.argmax(1)
    matrix = np.zeros((5, 5), int)
    np.add.at(matrix, (targets, predicted), 1)
    assert content["confusion_matrix"] == matrix.tolist()
    assert [row["support"] for row in content["per_class"]] == matrix.sum(1).tolist()
    assert content["classes"] == [row["name"] for row in content["per_class"]] == list("01234")
    assert content["macro_f1"] == pytest.approx(np.mean([r["f1"] for r in content["per_class"]]))
    wrong = np.flatnonzero(predicted != targets)
    surest = sorted(wrong, key=lambda i: -probabilities[i].max())[:4]
    assert [row["index"] for row in content["mistakes"]] == surest
    for row in content["mistakes"]:
        index = row["index"]
        assert (row["true"], row["predicted"]) == (targets[index], predicted[index])
        assert row["confidence"] == pytest.approx(probabilities[index].max(), rel=1e-6)


def test_mistakes_keep_the_images_they_were_made_on(tmp_path: Path, idx_folder: Path) -> None:
    """A model of one step is mostly wrong: the batches bring their mistakes in any order."""
    run = train_here(tmp_path, idx_folder, "--train.max_steps=1")
    trained = load_trained(run)
    data = load_datasets(trained.config.data, seed=0)
    found = assess(trained, data, num_mistakes=30)
    wrong = found.metrics.count - found.metrics.correct
    assert len(found.mistakes) == len(found.inputs) == min(30, wrong)
    assert wrong > 30
    assert found.mistakes == sorted(found.mistakes, key=lambda m: (-m.confidence, m.index))
    for mistake, inputs in zip(found.mistakes, found.inputs, strict=True):
        assert torch.equal(inputs, data.test[mistake.index][0])
        assert int(data.test[mistake.index][1]) == mistake.true != mistake.predicted


def test_another_data_set_is_normalised_as_the_model_was_trained(
    trained_run: Path, tmp_path: Path
) -> None:
    """Only the test part counts: a brighter training part does not move the normalisation."""
    trained = load_trained(trained_run)
    other = Path(shutil.copytree(str(trained.config.data.root), tmp_path / "other"))
    training = other / "train-images-idx3-ubyte"
    write_idx(training, 255 - read_idx(training) // 2)
    (tmp_path / "out").mkdir()
    content = evaluate(trained_run, tmp_path / "out", "--data.root", other)
    assert content["data"] == {"dataset": "idx", "root": str(other)}
    assert content["loss"] == recorded_at(trained_run, content["step"])["eval/loss"]


def test_a_model_without_a_mistake_has_an_empty_grid(trained_run: Path, tmp_path: Path) -> None:
    content = evaluate(trained_run, tmp_path, "--mistakes=0", "--png")
    assert content["mistakes"] == []
    assert (tmp_path / "mistakes.png").is_file()


@pytest.mark.parametrize(
    ("shape", "num_classes", "message"),
    [((9, 8), 5, r"shape of the inputs: given \(1, 9, 8\)"), ((9, 7), 6, "classes of the data")],
)
def test_data_the_model_cannot_know_are_refused(
    trained_run: Path, tmp_path: Path, shape: tuple[int, ...], num_classes: int, message: str
) -> None:
    folder = make_idx(tmp_path / "idx", shape=shape, num_classes=num_classes)
    with pytest.raises(InputError, match=message):
        evaluate(trained_run, tmp_path, f"--data.root={folder}")
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.name=mlp"], "--model.name: expected a key of data, evaluate, parallel"),
        (["--data.rot=x"], "unknown config key 'data.rot'"),
        (["--data.root"], "--data.root: expected a value after it"),
        (["--output=/dev/null/folder"], "expected a folder that can be made"),
        (["--checkpoint=nowhere"], "--checkpoint: given 'nowhere'"),
    ],
)
def test_bad_arguments_give_one_message(
    trained_run: Path, tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        main([str(trained_run), f"--output={tmp_path}", *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_missing_run_is_one_message_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/config.yaml").touch()
    finished = launch("launch/evaluate.py", "mine", cwd=tmp_path)
    assert finished.status == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: run: given 'mine'")
    assert "Did you mean 'runs/mine'?" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_missing_package_names_the_extra(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"matplotlib.* is not installed .*\.\[report\]"):
        main([str(trained_run), f"--output={tmp_path}", "--png"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [evaluate_command, predict_command, export_command])
def test_help_explains_every_option_in_a_sentence(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for action in command.build_parser()._actions:
        assert action.option_strings in (["-h", "--help"], []) or action.option_strings[0] in shown
        assert action.help
        assert action.dest == "help" or action.help.endswith(".")
