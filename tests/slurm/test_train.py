"""slurm/train.sbatch on a real slurmctld: two nodes with two ranks each, stopped in every way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, assert_same_bits, make_idx
from tests.slurm.cluster import Cluster, Job
from tests.slurm.conftest import RANKS, STEPS, Study

pytestmark = pytest.mark.slurm

SLOW = 0.25
"""Seconds of a step while a run waits for what a test does to it: 33 seconds for a whole run."""


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def saved_step(run: Path) -> int:
    return int(json.loads((run / "checkpoints/latest/manifest.json").read_text())["step"])


def assert_continued(job: Job, study: Study, name: str, whole: Job) -> None:
    """The run ended as if nothing had happened to it."""
    assert "continuing from" in job.output, job.describe("not continued")
    assert summary(study.run(name))["status"] == "completed"
    assert summary(study.run(name))["step"] == STEPS
    assert_same_bits(study.run("whole"), study.run(name))


def test_two_nodes_with_two_ranks_each_train_to_the_end(whole: Job, study: Study) -> None:
    fields = whole.fields()
    assert (fields["ExitCode"], fields["Restarts"]) == ("0:0", "0")
    environment = json.loads((study.run("whole") / "environment.json").read_text())
    assert environment["launcher"] == "srun"
    assert environment["world_size"] == 4
    assert environment["threads"] == 1
    assert summary(study.run("whole"))["step"] == STEPS


def test_the_time_limit_saves_and_requeues_once(study: Study, whole: Job) -> None:
    """--signal comes up to a minute early: with 2 minutes, 15 to 45 s after the start."""
    job = study.submit(
        "limit",
        "--logging.wandb.mode=online",
        options=(*RANKS, "--time=2", "--signal=USR1@45"),
        seconds=1.0,
        env={"WANDB_MODE": "offline"},
    )
    job.wait_until(lambda: job.restarts == 1, "requeued")
    stopped = summary(study.run("limit"))
    assert stopped["status"] == "preempted"
    assert saved_step(study.run("limit")) == stopped["step"] < STEPS
    identity = (study.run("limit") / "wandb.json").read_text()
    study.pace("limit", 0.0)
    study.cluster.call("scontrol", "update", f"JobId={job.id}", "TimeLimit=30")
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert job.output.count("convoy: requeued") == 1
    assert job.output.count("Stopped on request") == 1
    assert_continued(job, study, "limit", whole)
    # One W&B run, recorded in two parts without the network.
    assert (study.run("limit") / "wandb.json").read_text() == identity
    run_id = json.loads(identity)["id"]
    parts = list((study.run("limit") / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert all(part.name.endswith(run_id) for part in parts)


def test_scontrol_requeue_in_mid_epoch(study: Study, whole: Job) -> None:
    """Slurm requeues; the script must not do it again."""
    job = study.submit("requeue", seconds=SLOW)
    study.wait_for_step(job, "requeue", 30)
    study.cluster.call("scontrol", "requeue", job.id)
    job.wait_until(lambda: job.state == "PENDING", "pending")
    assert summary(study.run("requeue"))["status"] == "preempted"
    assert 30 <= saved_step(study.run("requeue")) < STEPS
    assert saved_step(study.run("requeue")) % 22 != 0
    study.pace("requeue", 0.0)
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "convoy: requeued" not in job.output
    assert_continued(job, study, "requeue", whole)


def test_scancel_saves_and_ends_for_good(study: Study) -> None:
    job = study.submit("cancel", seconds=SLOW)
    study.wait_for_step(job, "cancel", 30)
    study.cluster.call("scancel", job.id)
    job.wait_for("CANCELLED", timeout=40)
    assert summary(study.run("cancel"))["status"] == "preempted"
    assert saved_step(study.run("cancel")) == summary(study.run("cancel"))["step"] >= 30
    assert "not requeued from here" in job.output
    time.sleep(5)  # longer than a requeued job waits here
    assert (job.state, job.restarts) == ("CANCELLED", 0)


def test_a_signal_to_the_batch_shell_alone_reaches_the_ranks(study: Study, whole: Job) -> None:
    """As --signal=B:USR1@120 sends it; and there is a limit to how often a job starts again."""
    job = study.submit("shell", seconds=SLOW, env={"CONVOY_MOST_RESTARTS": "1"})
    for start in (0, 1):
        before = study.last_step("shell")
        study.wait_for_step(job, "shell", before + 20)
        job.signal("USR1", "--batch")
        if start == 0:
            job.wait_until(lambda: job.restarts == 1, "requeued")
    job.wait_for("FAILED")
    assert job.fields()["ExitCode"] == "75:0"
    assert "started again 1 times: not requeued" in job.output
    study.pace("shell", 0.0)
    again = study.submit("shell")
    again.wait_for("COMPLETED")
    assert_continued(again, study, "shell", whole)


def test_a_killed_rank_ends_the_job_and_the_run_can_be_continued(study: Study, whole: Job) -> None:
    job = study.submit("rank", seconds=SLOW)
    study.wait_for_step(job, "rank", 30)
    os.kill(job.rank(3), signal.SIGKILL)
    killed = time.monotonic()
    job.wait_for("FAILED", timeout=60)
    assert time.monotonic() - killed < 30
    assert "task 3: Killed" in job.output
    assert job.restarts == 0
    assert saved_step(study.run("rank")) == 22
    again = study.submit("rank")
    again.wait_for("COMPLETED")
    assert_continued(again, study, "rank", whole)


def test_a_killed_slurmd_does_not_hang_the_job(study: Study, whole: Job) -> None:
    """Its node goes down, Slurm requeues the job, and the node's return lets it finish."""
    cluster = study.cluster
    job = study.submit("slurmd", seconds=SLOW)
    study.wait_for_step(job, "slurmd", 30)
    cluster.kill_node("node2")
    try:
        job.wait_until(lambda: job.restarts == 1, "requeued")
        study.pace("slurmd", 0.0)
    finally:
        cluster.start_node("node2")
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert_continued(job, study, "slurmd", whole)


def test_a_refused_config_is_not_requeued(study: Study) -> None:
    job = study.submit("refused", "--optimizer.lrr=1")
    job.wait_for("FAILED")
    assert job.fields()["ExitCode"] == "2:0"
    assert job.restarts == 0
    assert "did you mean 'optimizer.lr'?" in job.output


def test_a_checkout_with_a_space_in_its_path(cluster: Cluster, tmp_path: Path) -> None:
    """Submitted from a folder inside it, with options of its own and a path that is relative."""
    checkout = tmp_path / "a b" / "convoy"
    left_out = shutil.ignore_patterns(".*", "runs", "wandb", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, checkout, ignore=left_out)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    make_idx(checkout / "my data")
    job = cluster.submit(
        "train.sbatch",
        "--config",
        "idx",
        "--data.root",
        "my data",
        "--name",
        "spaced out",
        "--train.epochs",
        "3",
        options=RANKS,
        cwd=checkout / "slurm",
    )
    job.wait_for("COMPLETED")
    assert summary(checkout / "runs" / "spaced out")["epoch"] == 3
