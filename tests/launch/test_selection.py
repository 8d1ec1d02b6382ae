"""Which weights are kept, and when a run has had enough: early stopping, the best checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import launch, train
from tests.support.runs import assert_same_bits, records, series

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]


def test_a_run_stops_when_patience_is_out_and_stays_finished(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: it ends `patience` evaluations after the last gain, and a restart adds nothing."""
    arguments = small("run", "--train.epochs=40", "--train.patience=2", "--train.min_gain=0.05")
    assert train(*arguments).status == 0
    run = tmp_path / "run"
    found = series(run, "eval/accuracy")
    assert len(found) < 40
    to_beat, without = float("-inf"), 0
    for number, accuracy in enumerate(found, start=1):
        without += 1
        if accuracy > to_beat + 0.05:
            to_beat, without = accuracy, 0
        assert (without == 2) == (number == len(found))
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"
    again = train(*arguments)
    assert "already finished" in again.output
    assert series(run, "eval/accuracy") == found
    refused = launch("launch/train.py", *arguments, "--profile")
    assert (refused.status, refused.stdout) == (2, "")
    assert "--profile: given 'a run that was already finished" in refused.stderr
    assert json.loads((run / "summary.json").read_text())["status"] == "completed"


def test_the_loss_may_decide_which_checkpoint_is_best(small: Arguments, tmp_path: Path) -> None:
    more = ("--evaluate.best=loss", "--train.epochs=5", "--checkpoint.keep_best=2")
    assert train(*small("run", *more, "--checkpoint.keep=2")).status == 0
    run = tmp_path / "run"
    losses = {
        record["step"]: record["eval/loss"] for record in records(run) if "eval/loss" in record
    }
    ranked = sorted(losses, key=losses.__getitem__)
    kept = {int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")}
    assert kept == {*ranked[:2], *sorted(losses)[-2:]}
    assert (run / "checkpoints/best").resolve().name == f"step_{ranked[0]:08d}"


def test_an_unknown_best_metric_is_refused_with_the_known_ones(
    small: Arguments, tmp_path: Path
) -> None:
    finished = launch("launch/train.py", *small("run", "--evaluate.best=f1"))
    assert finished.status == 2
    assert "evaluate.best" in finished.output
    assert "loss, accuracy" in finished.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_swa_and_mixtures_continue_bit_for_bit(small: Arguments, tmp_path: Path) -> None:
    """Stopped in mid-epoch, after two of four averaged epochs."""
    more = (
        "--train.epochs=4",
        "--train.swa_from_epoch=2",
        "--data.augment.mixup=0.4",
        "--data.augment.cutmix=1",
        "--train.label_smoothing=0.1",
        "--checkpoint.every_steps=5",
    )
    assert train(*small("whole", *more)).status == 0
    assert train(*small("parts", *more, "--train.max_steps=70")).status == 0
    assert train(*small("parts", *more)).status == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (series(tmp_path / name, "eval/loss") for name in ("whole", "parts"))
    assert whole[-1] == parts[-1]
