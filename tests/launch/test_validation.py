"""A run with a validation set: all that chooses looks at it, and never at the test set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import InputError
from configs.load import load_config
from data.formats.idx import read_idx
from launch.train import train as train_with
from tests.support.data_sets import make_idx
from tests.support.idx_files import write_idx
from tests.support.processes import train
from tests.support.runs import assert_same_bits, comparable, records, series, train_here
from trainer.ranks.stop_signals import StopRequest

Arguments = Callable[..., list[str]]
VALIDATION = "--data.validation=0.2"
ERRATIC = ("--train.epochs=6", "--optimizer.lr=0.01", "--data.validation=0.2", "--seed=3")
"""Options with which, on noisy labels, later epochs are now and then worse than earlier ones."""


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """Data of which every third label is another one."""
    folder = make_idx(tmp_path / "noisy")
    for split in ("train", "test"):
        path = folder / f"{split}-labels-idx1-ubyte"
        labels = read_idx(path).copy()
        labels[::3] = (labels[::3] + 1) % 5
        write_idx(path, labels)
    return folder


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_records_and_summary_say_what_was_measured_on_which_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: `val/` after every epoch, `test/` once, at the end; the last line names them."""
    run = train_here(tmp_path, make_idx(tmp_path / "idx"), VALIDATION)
    found = records(run)
    assert not [key for record in found for key in record if key.startswith("eval/")]
    assert series(run, "val/count") == [102, 102]
    assert series(run, "test/count") == [101]
    assert "test/accuracy" in found[-1]
    said = summary(run)
    assert said["selected_on"] == "validation"
    assert said["val/accuracy"] == series(run, "val/accuracy")[-1]
    assert said["best/accuracy"] == max(series(run, "val/accuracy"))
    assert {"test/accuracy", "test_best/accuracy"} <= said.keys()
    assert f"Final test accuracy {said['test/accuracy']:.2%} on 101" in capsys.readouterr().out


def test_without_one_it_says_that_the_best_was_chosen_on_the_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_here(tmp_path, make_idx(tmp_path / "idx"))
    assert summary(run)["selected_on"] == "test"
    assert "chosen on these very samples" in capsys.readouterr().out


def test_the_best_weights_are_tested_too_and_the_run_keeps_its_own(
    noisy: Path, tmp_path: Path
) -> None:
    """Law: `test/` is of the final weights and `test_best/` of the best checkpoint's."""
    from launch.evaluate import main as evaluate

    run = train_here(tmp_path, noisy, *ERRATIC, "--train.ema_decay=0.5")
    said = summary(run)
    assert said["best/step"] < said["step"], "the case to be tried did not occur"
    assert said["test/loss"] != said["test_best/loss"]
    for checkpoint, group in (("latest", "test"), ("best", "test_best")):
        out = tmp_path / checkpoint
        out.mkdir()
        assert evaluate([str(run), f"--checkpoint={checkpoint}", f"--output={out}"]) == 0
        content = json.loads((out / "evaluation.json").read_text())
        assert content["correct"] == said[f"{group}/correct"]
        assert content["loss"] == pytest.approx(said[f"{group}/loss"])


def test_evaluate_looks_at_any_of_the_three(tmp_path: Path) -> None:
    from launch.evaluate import main as evaluate

    data = make_idx(tmp_path / "idx")
    run = train_here(tmp_path, data, VALIDATION)
    counts = []
    for split in ("validation", "test", "train"):
        arguments = [str(run), "--checkpoint=latest", "--mistakes=0", f"--split={split}"]
        assert evaluate(arguments) == 0
        content = json.loads((run / "evaluation.json").read_text())
        counts.append(content["count"])
        if split != "train":
            group = {"validation": "val", "test": "test"}[split]
            assert content["correct"] == summary(run)[f"{group}/correct"]
    assert counts == [102, 101, 407]
    plain = train_here(tmp_path / "plain", data)
    with pytest.raises(InputError, match="--split: given 'validation'"):
        evaluate([str(plain), "--split=validation"])


def test_shuffled_test_labels_change_no_bit_of_what_is_chosen(noisy: Path, tmp_path: Path) -> None:
    """Law: neither weights, nor which ones are best, nor when a run ends, nor its rates."""
    shuffled = Path(shutil.copytree(noisy, tmp_path / "shuffled"))
    path = shuffled / "test-labels-idx1-ubyte"
    labels = read_idx(path)
    write_idx(path, np.roll(labels, 7))
    options = (*ERRATIC, "--train.patience=2", "--schedule.name=ReduceLROnPlateau")
    options += ("--schedule.kwargs={patience: 0}", "--checkpoint.keep_best=2")
    first = train_here(tmp_path / "a", noisy, *options)
    second = train_here(tmp_path / "b", shuffled, *options)
    assert_same_bits(first, second)
    names = [
        sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (first, second)
    ]
    assert names[0] == names[1]
    chosen = [(run / "checkpoints/best/model.safetensors").read_bytes() for run in (first, second)]
    assert chosen[0] == chosen[1]
    ours, theirs = summary(first), summary(second)
    differ = {key for key in ours if ours[key] != theirs[key]} - {"elapsed_seconds"}
    assert differ
    assert all(key.startswith("test") for key in differ)


class Stop(StopRequest):
    """A stop request that comes when the test set is being evaluated."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__()
        self.run, self.step, self.asked = run, step, 0

    @property
    def pending(self) -> bool:
        path = self.run / "metrics.jsonl"
        if path.exists() and any(
            record["step"] == self.step and "val/loss" in record for record in records(self.run)
        ):
            self.asked += 1
        return self.asked > 2


def test_a_stop_while_the_test_set_is_evaluated_is_continued_there(
    noisy: Path, tmp_path: Path
) -> None:
    """Law: records and weights are those of an undisturbed run."""
    whole = train_here(tmp_path / "whole", noisy, *ERRATIC, "--train.patience=3")
    last = records(whole)[-1]["step"]

    def again(stop: StopRequest) -> int:
        arguments = ["--config=idx", f"--data.root={noisy}", f"--output_dir={tmp_path}"]
        arguments += ["--name=run", "--parallel.device=cpu", "--train.global_batch_size=24"]
        arguments += ["--evaluate.batch_size=40", "--logging.progress=off", "--train.patience=3"]
        return train_with(load_config([*arguments, *ERRATIC], prog="", description=""), stop)

    run = tmp_path / "run"
    assert again(Stop(run, last)) == 75
    assert "test/loss" not in records(run)[-1]
    assert summary(run)["status"] == "preempted"
    assert again(StopRequest()) == 0
    assert comparable(run) == comparable(whole)
    assert_same_bits(run, whole)
    assert again(StopRequest()) == 0, "it is finished"
    assert comparable(run) == comparable(whole)


def test_a_longer_run_goes_on_choosing_and_is_tested_at_its_own_end(tmp_path: Path) -> None:
    data = make_idx(tmp_path / "idx")
    run = train_here(tmp_path, data, VALIDATION)
    train_here(tmp_path, data, VALIDATION, "--train.epochs=3")
    assert len(series(run, "val/loss")) == 3
    assert [r["epoch"] for r in records(run) if "test/loss" in r] == [2.0, 3.0]
    assert summary(run)["test/loss"] == series(run, "test/loss")[-1]


@pytest.mark.slow
@pytest.mark.process
def test_the_same_samples_are_held_out_on_any_number_of_ranks(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: under exact reduction all records agree, so the choice does too."""
    exact = ("--parallel.reduction=exact", "--parallel.shards=4", VALIDATION)
    runs = []
    for ranks in (1, 2):
        assert train(*small(f"of-{ranks}", *exact), ranks=ranks).status == 0
        runs.append(comparable(tmp_path / f"of-{ranks}"))
    assert runs[0] == runs[1]
    assert train(*small("of-3", VALIDATION), ranks=3).status == 0
    for key in ("val/count", "test/count", "epoch"):
        assert series(tmp_path / "of-3", key) == [r[key] for r in runs[0] if key in r]


@pytest.mark.process
@pytest.mark.slow
def test_sharded_weights_are_exchanged_for_the_best_ones_and_back(
    small: Arguments, noisy: Path, tmp_path: Path
) -> None:
    """Law: FSDP on two ranks tests what evaluate finds in its checkpoints."""
    from launch.evaluate import main as evaluate

    options = (*ERRATIC, "--parallel.strategy=fsdp", "--model.kwargs={hidden: [24, 16]}")
    options += (f"--data.root={noisy}",)
    assert train(*small("run", *options), ranks=2).status == 0
    said = summary(tmp_path / "run")
    assert said["best/step"] < said["step"], "the case to be tried did not occur"
    for checkpoint, group in (("latest", "test"), ("best", "test_best")):
        out = tmp_path / checkpoint
        out.mkdir()
        arguments = [f"--checkpoint={checkpoint}", f"--output={out}"]
        assert evaluate([str(tmp_path / "run"), *arguments]) == 0
        content = json.loads((out / "evaluation.json").read_text())
        assert content["correct"] == said[f"{group}/correct"]
