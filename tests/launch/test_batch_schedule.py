"""train.batch_schedule: another global batch size from an epoch on, and all that counts epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.processes import launch, train
from tests.support.runs import assert_same_bits, latest_weights, records, series

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
SCHEDULE = (
    "--train.epochs=4",
    "--train.batch_schedule={2: 48, 4: 96}",
    "--train.micro_batch_size=24",
)


def ends(run: Path) -> list[tuple[int, float]]:
    """Steps and epochs of the evaluations."""
    return [(r["step"], r["epoch"]) for r in records(run) if "eval/loss" in r]


def test_epochs_end_where_their_batch_sizes_say(small: Arguments, tmp_path: Path) -> None:
    assert train(*small("run", *SCHEDULE)).status == 0
    steps = [-(-509 // size) for size in (24, 48, 48, 96)]
    run = tmp_path / "run"
    assert ends(run) == [(sum(steps[: n + 1]), n + 1) for n in range(4)]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["batch_schedule"]
    # Its own resolved config continues it, and an exercise of another schedule does not.
    config = f"--config={run / 'config.yaml'}"
    assert "already finished" in launch("launch/train.py", config).output
    longer = [config, "--train.epochs=5", "--train.batch_schedule={2: 48}"]
    moved = launch("launch/train.py", *longer)
    assert "train.batch_schedule {'2': 48, '4': 96}, now {'2': 48}" in moved.output


def test_a_schedule_continues_bit_for_bit(small: Arguments, tmp_path: Path) -> None:
    """Stopped in the middle of a later stage, with what else counts epochs."""
    more = (*SCHEDULE, "--train.swa_from_epoch=2", "--schedule.name=StepLR")
    more = (*more, '--schedule.kwargs={"step_size": 1, "gamma": 0.7}', "--schedule.interval=epoch")
    assert train(*small("whole", *more)).status == 0
    stop = ends(tmp_path / "whole")[1][0] + 1
    assert train(*small("parts", *more, f"--train.max_steps={stop}")).status == 0
    assert train(*small("parts", *more)).status == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    for key in ("train/lr", "train/loss"):
        whole, parts = (series(tmp_path / name, key) for name in ("whole", "parts"))
        assert whole == parts
    assert len(set(series(tmp_path / "whole", "train/lr"))) == 4


@pytest.mark.slow
def test_two_ranks_train_the_same_weights(small: Arguments, tmp_path: Path) -> None:
    exact = (*SCHEDULE, "--parallel.reduction=exact", "--parallel.shards=8")
    for ranks in (1, 2):
        assert train(*small(f"ranks{ranks}", *exact), ranks=ranks).status == 0
    assert_same_bits(tmp_path / "ranks1", tmp_path / "ranks2")
    plain = [*small("plain", "--train.epochs=4"), *exact[3:]]
    assert train(*plain).status == 0
    one, other = latest_weights(tmp_path / "ranks1"), latest_weights(tmp_path / "plain")
    assert any(not one[name].equal(other[name]) for name in one)


def test_a_dry_run_shows_every_stage(small: Arguments) -> None:
    finished = launch(
        "launch/train.py",
        *small("run", *SCHEDULE),
        "--dry_run.world_size=2",
        env={"COLUMNS": "200"},
    )
    assert finished.status == 0, finished.output
    assert "full batch from epoch 2 on" in finished.output
    assert "full batch from epoch 4 on" in finished.output


def test_a_bad_schedule_is_refused_with_what_it_may_be(small: Arguments, tmp_path: Path) -> None:
    for given, expected in (("{1: 48}", "epochs from 2 on"), ("{2: many}", "train.batch_schedule")):
        finished = launch("launch/train.py", *small("run", f"--train.batch_schedule={given}"))
        assert finished.status == 2, json.dumps(finished.output)
        assert expected in finished.output
    assert not (tmp_path / "run").exists()
