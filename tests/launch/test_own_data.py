"""Real runs on every kind of data set: they learn, go on where they stopped, and refuse by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from launch import evaluate, predict
from tests.support.data_sets import (
    CLASSES,
    JITTER,
    encoded,
    make_arrays,
    make_cifar,
    make_saved,
    make_shards,
    make_tree,
    picture,
)
from tests.support.processes import launch, train
from tests.support.runs import assert_same_bits, series, train_here

SMALL = ("--data.kwargs.size=12",)
KINDS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "image_folder": (make_tree, SMALL),
    "npy": (make_arrays, ()),
    "cifar10": (make_cifar, ("--data.verify=false",)),
    "webdataset": (make_shards, SMALL),
    "huggingface": (make_saved, SMALL),
}
MLP = '--model.kwargs={"hidden": [16], "dropout": 0.2}'


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_learns_and_records_what_a_model_must_know_of_it(kind: str, tmp_path: Path) -> None:
    if kind == "huggingface" and find_spec("datasets") is None:
        pytest.skip("datasets is missing: Hugging Face sets are NOT tested")
    make, options = KINDS[kind]
    root = make(tmp_path / "set")
    run = train_here(tmp_path, root, f"--data.dataset={kind}", MLP, "--train.epochs=4", *options)
    assert series(run, "eval/accuracy")[-1] > 0.8
    facts = json.loads((run / "model.json").read_text())
    assert facts["dtype"] == "uint8"
    assert facts["num_classes"] == (10 if kind == "cifar10" else 3)
    assert len(facts["mean"]) == 3


def arguments(root: Path, output: Path, name: str, *more: str) -> list[str]:
    return [
        "--config=idx",
        "--data.dataset=image_folder",
        f"--data.root={root}",
        f"--data.kwargs={json.dumps({'size': 12, 'augment': JITTER})}",
        MLP,
        f"--output_dir={output}",
        f"--name={name}",
        "--train.global_batch_size=8",
        "--train.epochs=3",
        "--checkpoint.every_steps=5",
        "--logging.every_steps=1",
        *more,
    ]


@pytest.mark.process
@pytest.mark.slow
def test_augmented_pictures_end_with_the_same_bits_however_they_were_read(tmp_path: Path) -> None:
    """Law: neither workers nor an interruption in the middle of an epoch changes a bit."""
    root = make_tree(tmp_path / "tree")
    train(*arguments(root, tmp_path, "whole"))
    train(*arguments(root, tmp_path, "broken", "--data.workers=2", "--train.max_steps=6"))
    train(*arguments(root, tmp_path, "broken", "--data.workers=1"))
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")
    losses = series(tmp_path / "whole", "train/loss")
    assert len(losses) == 12
    assert series(tmp_path / "broken", "train/loss") == losses


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_ends_a_run_with_one_message(workers: int, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", ending="jpg")
    path = root / "train" / CLASSES[2] / "002.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    finished = launch(
        "launch/train.py", *arguments(root, tmp_path, "run", f"--data.workers={workers}")
    )
    assert finished.status == 2, finished.output
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {path} cannot be read as a picture (")
    assert "Traceback" not in finished.output
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def break_classes(root: Path) -> None:
    (root / "val" / CLASSES[0]).rename(root / "val" / "blue_yay")


def break_root(root: Path) -> None:
    root.rename(root.parent / "elsewhere")


@pytest.mark.process
@pytest.mark.parametrize(
    ("damage", "said"),
    [(break_classes, "only in val: blue_yay"), (break_root, "a folder that exists")],
)
def test_wrong_folders_are_refused_before_anything_is_written(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree", num_train=6, num_test=3)
    damage(root)
    finished = launch("launch/train.py", *arguments(root, tmp_path, "run"))
    assert finished.status == 2
    (line,) = finished.stderr.removeprefix("loading torch ...\n").splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_run_on_cifar_is_evaluated_and_predicts(tmp_path: Path) -> None:
    """Law: what reads a trained run needs no more of CIFAR than of MNIST."""
    root = make_cifar(tmp_path / "set")
    options: list[Any] = ["--data.dataset=cifar10", "--data.verify=false", MLP]
    run = train_here(tmp_path, root, *options, "--train.epochs=4")
    assert evaluate.main([str(run), f"--output={tmp_path}"]) == 0
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["accuracy"] == series(run, "eval/accuracy")[-1]
    image = tmp_path / "image.png"
    image.write_bytes(encoded(picture(2, 77, 32, 32)))
    output = tmp_path / "rows.json"
    assert predict.main([str(run), str(image), f"--output={output}"]) == 0
    row = json.loads(output.read_text())[0]
    assert "bird" in row.values(), row


@pytest.mark.process
def test_prepare_data_verifies_what_it_finds_and_refuses_what_needs_no_preparing(
    tmp_path: Path,
) -> None:
    make_cifar(tmp_path / "cifar10")
    finished = launch("launch/prepare_data.py", "cifar10", "--root", tmp_path)
    assert finished.status == 2, "found, but not the published files"
    assert "another content than the published file" in finished.stderr
    finished = launch("launch/prepare_data.py", "image_folder")
    assert finished.status == 2
    assert "nothing to fetch" in finished.stderr
