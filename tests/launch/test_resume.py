"""A run that is stopped or killed goes on bit for bit."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import (
    ROOT,
    begin,
    children,
    launch,
    python_command,
    start,
    torchrun_command,
    train,
    wait,
    wait_for_step,
)
from tests.support.runs import assert_same_bits, comparable, records

pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("ranks", "workers", "backward"),
    [
        (1, 0, "explicit"),
        (1, 2, "autograd"),
        (2, 0, "explicit"),
        pytest.param(2, 2, "autograd", marks=pytest.mark.slow),
        pytest.param(3, 0, "autograd", marks=pytest.mark.slow),
    ],
)
def test_a_continued_run_is_bit_identical(
    small: Arguments, tmp_path: Path, ranks: int, workers: int, backward: str
) -> None:
    """Stopped in mid-epoch and in mid-interval of the log; dropout, EMA and clipping on."""
    extra = [
        f"--data.workers={workers}",
        f"--compile.backward={backward}",
        "--logging.every_steps=4",
        "--train.ema_decay=0.9",
        "--train.clip_norm=0.5",
    ]
    train(*small("whole", *extra, "--train.max_steps=40"), ranks=ranks)
    train(*small("parts", *extra, "--train.max_steps=13"), ranks=ranks)
    train(*small("parts", *extra, "--train.max_steps=40"), ranks=ranks)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert comparable(tmp_path / "parts", 16) == comparable(tmp_path / "whole", 16)


def test_sigterm_to_one_process_saves_exits_75_and_continues(
    small: Arguments, tmp_path: Path
) -> None:
    extra = ["--train.epochs=200"]
    process = begin(python_command("launch/train.py", *small("stopped", *extra)))
    wait_for_step(tmp_path / "stopped", 50, process)
    process.send_signal(signal.SIGTERM)
    stopped = wait(process)
    assert stopped.status == 75, stopped.output
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert summary["status"] == "preempted"
    assert 45 <= summary["step"] < 200 * 22  # two of the 50 records were evaluations
    train(*small("stopped", *extra))
    train(*small("whole", *extra))
    assert_same_bits(tmp_path / "whole", tmp_path / "stopped")
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, *(pytest.param(n, marks=SLOW) for n in (signal.SIGTERM, signal.SIGINT))],
)
def test_a_signal_to_one_rank_stops_all_of_them_together(
    small: Arguments, tmp_path: Path, number: signal.Signals
) -> None:
    extra = ["--train.epochs=2000", "--data.workers=1"]
    process = start(torchrun_command(2, "launch/train.py", *small("stopped", *extra)))
    wait_for_step(tmp_path / "stopped", 50, process)
    os.kill(children(process.pid)[1], number)
    stopped = wait(process)
    assert 'Traceback (most recent call last):\n  File "/' not in stopped.stdout
    assert "Stopped on request" in stopped.stdout, stopped.output
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert summary["status"] == "preempted"
    manifest = json.loads((tmp_path / "stopped/checkpoints/latest/manifest.json").read_text())
    assert manifest["step"] == summary["step"]


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGKILL,
        *(pytest.param(n, marks=SLOW) for n in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_a_signal_to_the_launcher_stops_the_ranks(
    small: Arguments, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGUSR1 and SIGKILL end torchrun itself: its ranks notice, save, clear up and leave."""
    options, temporary = small("run", "--train.epochs=2000"), tmp_path / "temporary"
    temporary.mkdir()
    command = torchrun_command(2, "launch/train.py", *options)
    if number == signal.SIGKILL:
        command = [sys.executable, "-m", "convoy", "train", "--nproc=2", *options]
    process = start(command, env={"TMPDIR": str(temporary)})
    wait_for_step(tmp_path / "run", 50, process)
    process.send_signal(number)
    assert "Stopped on request" in wait(process).stdout  # the pipe closes when the ranks have left
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "preempted"
    manifest = json.loads((tmp_path / "run/checkpoints/latest/manifest.json").read_text())
    assert manifest["step"] == summary["step"] < 2000 * 22
    assert not [*temporary.glob("convoy-*")]


def test_sigkill_in_mid_epoch_loses_nothing(small: Arguments, tmp_path: Path) -> None:
    extra = ["--train.epochs=30", "--checkpoint.every_steps=5", "--checkpoint.every_epochs=null"]
    process = begin(python_command("launch/train.py", *small("killed", *extra)))
    wait_for_step(tmp_path / "killed", 77, process)
    process.kill()
    assert wait(process).status == -signal.SIGKILL
    train(*small("killed", *extra))
    train(*small("whole", *extra))
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_used(
    small: Arguments, tmp_path: Path
) -> None:
    extra = ["--checkpoint.every_steps=10"]
    train(*small("broken", *extra, "--train.max_steps=30"))
    weights = tmp_path / "broken/checkpoints/step_00000030/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    finished = train(*small("broken", *extra, "--train.max_steps=40"))
    assert "step_00000030 rejected: model.safetensors has another SHA-256" in finished.stderr
    assert "continuing from" in finished.stderr
    assert "step_00000022 (step 22)" in finished.stderr  # the end of the first epoch
    train(*small("whole", *extra, "--train.max_steps=40"))
    assert_same_bits(tmp_path / "whole", tmp_path / "broken")


def test_a_run_continues_on_another_number_of_ranks(small: Arguments, tmp_path: Path) -> None:
    """Without dropout the losses are those of the undisturbed run within 1e-5."""
    extra = ["--model.kwargs.dropout=0"]
    train(*small("whole", *extra, "--train.max_steps=40"))
    for ranks, steps in ((2, 13), (1, 27), (3, 40)):
        train(*small("moved", *extra, f"--train.max_steps={steps}"), ranks=ranks)
    whole, moved = comparable(tmp_path / "whole"), comparable(tmp_path / "moved")
    losses = [
        [record["train/loss"] for record in run if "train/loss" in record] for run in (whole, moved)
    ]
    assert len(losses[0]) == 40
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_finished_run_is_not_trained_again(small: Arguments, tmp_path: Path) -> None:
    """Law: who looks at it in another way does not change how it was executed."""
    train(*small())
    files = [tmp_path / "run" / name for name in ("metrics.jsonl", "environment.json")]
    before = [file.read_text() for file in files]
    again = train(*small(), "--checkpoint.resume=auto")
    assert "already finished at step 44" in again.stdout
    assert "continuing" not in again.output
    assert [file.read_text() for file in files] == before


def test_never_starts_afresh_and_keeps_the_old_run(small: Arguments, tmp_path: Path) -> None:
    train(*small("run", "--train.max_steps=5"))
    finished = train(*small("run", "--train.max_steps=6", "--checkpoint.resume=never"))
    assert "moved to" in finished.stderr
    assert records(tmp_path / "run.1")[-1]["step"] == 5
    assert records(tmp_path / "run")[0]["step"] == 1


def test_an_evaluation_that_was_stopped_and_killed_is_recorded_once(
    small: Arguments, tmp_path: Path
) -> None:
    """Law: stopped in it, continued, killed before its checkpoint was there: records are those of
    a run left alone."""
    slow = {"hidden": [24, 16], "evaluation_sleep": 0.05}
    options = ["--model.name=faulty:Net", "--evaluate.batch_size=1"]
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests/programs'}"}
    command = small("run", *options, f"--model.kwargs={json.dumps(slow)}")
    process = begin(python_command("launch/train.py", *command), env=env)
    wait_for_step(tmp_path / "run", 22, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert wait(process).status == 75
    quick = [*options, '--model.kwargs={"hidden": [24, 16]}']
    again = small("run", *quick, "--checkpoint.resume", tmp_path / "run")
    killed = launch("tests/programs/dying.py", *again, env=env | {"KILLED_SAVING": "yes"})
    assert killed.status == -signal.SIGKILL, killed.output
    recorded = [record for record in records(tmp_path / "run") if "eval/loss" in record]
    assert len(recorded) == 1  # it had come to it
    train(*again, env=env)
    train(*small("whole", *quick), env=env)
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")


def test_another_config_does_not_continue_an_unfinished_run(
    small: Arguments, tmp_path: Path
) -> None:
    process = begin(python_command("launch/train.py", *small("run", "--train.epochs=2000")))
    wait_for_step(tmp_path / "run", 20, process)
    process.send_signal(signal.SIGUSR1)
    assert wait(process).status == 75
    refused = launch("launch/train.py", *small("run", "--train.epochs=2000", "--optimizer.lr=0.5"))
    assert refused.status == 2
    assert "optimizer.lr 0.001, now 0.5" in refused.stderr
    assert (tmp_path / "run/checkpoints/latest").exists()
