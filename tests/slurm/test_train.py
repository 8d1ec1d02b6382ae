"""slurm/train.sbatch on a real slurmctld: two nodes with two ranks each, stopped in every way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Cluster, Job
from tests.slurm.study import STEPS, WALK, Study
from tests.support.data_sets import make_idx
from tests.support.processes import ROOT
from tests.support.runs import assert_same_bits

pytestmark = [pytest.mark.slurm, pytest.mark.process]


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


def test_scontrol_requeue_in_mid_epoch(study: Study, whole: Job) -> None:
    """Slurm requeues; the script must not do it again."""
    job = study.submit("requeue", seconds=WALK)
    study.hold(job, "requeue", 24)
    study.cluster.call("scontrol", "requeue", job.id)
    job.wait_until(lambda: job.state == "PENDING", "pending")
    assert summary(study.run("requeue"))["status"] == "preempted"
    assert 22 < saved_step(study.run("requeue")) < 44
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "convoy: requeued" not in job.output
    assert_continued(job, study, "requeue", whole)


def test_scancel_saves_and_ends_for_good(study: Study) -> None:
    job = study.submit("cancel", seconds=WALK)
    study.hold(job, "cancel", 30)
    study.cluster.call("scancel", job.id)
    job.wait_for("CANCELLED", timeout=40)
    assert summary(study.run("cancel"))["status"] == "preempted"
    assert saved_step(study.run("cancel")) == summary(study.run("cancel"))["step"] >= 30
    assert "not requeued from here" in job.output
    time.sleep(5)  # longer than a requeued job waits here
    assert (job.state, job.restarts) == ("CANCELLED", 0)


def test_a_chain_goes_on_where_the_job_before_was_stopped(study: Study, whole: Job) -> None:
    """By a signal to the batch shell alone, as --signal=B:USR1@120 sends it. No job of a chain is
    started again; Slurm was asked first whether it would take them."""
    (first, second), said = study.submit_to_site("chain", "--chain=2", seconds=WALK)
    assert "to start at" in said
    study.hold(first, "chain", 30)
    assert second.fields()["Dependency"].startswith(f"afterany:{first.id}")
    first.signal("USR1", "--batch")
    first.wait_for("FAILED")
    assert (first.fields()["ExitCode"], first.restarts) == ("75:0", 0)
    assert "started again 0 times: not requeued" in first.output
    study.pace("chain", 0.0)
    second.wait_for("COMPLETED")
    assert "continuing from" in study.printed(second)
    assert_same_bits(study.run("whole"), study.run("chain"))


def test_a_killed_rank_ends_the_job_and_the_run_can_be_continued(study: Study, whole: Job) -> None:
    job = study.submit("rank", seconds=WALK)
    study.hold(job, "rank", 24)
    job.wait_until((study.run("rank") / "checkpoints/latest").exists, "saved")
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


def assert_started_again(job: Job) -> None:
    """Once; more often only where a start alone takes as long as its time limit."""
    job.wait_for("COMPLETED")
    assert 1 <= job.restarts == job.output.count("convoy: requeued")
    starts = job.output.lower().split("convoy: job ")
    after_steps = [start.count("stopped on request at step") for start in starts]
    before_steps = [start.count("stopped on request before the first step") for start in starts]
    assert 1 <= sum(after_steps) + sum(map(bool, before_steps)) <= job.restarts
    assert max(after_steps) <= 1  # by rank 0; each of the four says it before its first step
    assert max(before_steps) <= 4


def test_the_signal_before_the_time_limit(beside: dict[str, Job], study: Study, whole: Job) -> None:
    job = beside["notice"]
    assert_started_again(job)
    assert "DUE TO TIME LIMIT" not in job.output
    assert_continued(job, study, "notice", whole)
    # One W&B run in two parts, recorded without the network.
    run_id = json.loads((study.run("notice") / "wandb.json").read_text())["id"]
    parts = list((study.run("notice") / "wandb").glob("offline-run-*"))
    assert 2 <= len(parts) <= job.restarts + 1
    assert all(part.name.endswith(run_id) for part in parts)


def test_the_time_limit_without_a_signal(beside: dict[str, Job], study: Study, whole: Job) -> None:
    """What is saved within KillWait is continued too."""
    job = beside["limit"]
    assert_started_again(job)
    assert "DUE TO TIME LIMIT" in job.output
    assert_continued(job, study, "limit", whole)


def test_a_signal_before_the_ranks_run(beside: dict[str, Job], study: Study, whole: Job) -> None:
    """None is lost: neither one that comes before srun nor one that Slurm drops afterwards."""
    job = beside["early"]
    job.wait_for("COMPLETED")
    assert job.restarts == 2
    assert job.output.count("convoy: requeued") == 2
    starts = (study.folder / "logs" / job.id / "rank0.log").read_text()
    assert starts.lower().count("stopped on request") == 1
    assert_same_bits(study.run("whole"), study.run("early"))
    # At the end the job says what it took; this cluster keeps no accounts.
    summary = job.output.splitlines()[-4:]
    assert re.match(rf"job {job.id}: status 0, restarts 2, 0:00:\d\d in the queue", summary[0])
    assert re.match(r"ran 0:0\d:\d\d: 0\.\d\d CPU hours", summary[1])
    assert summary[2].startswith("trained 0:00:")
    assert summary[3] == f"{study.run('early')}: completed at step {STEPS}"
    assert len(list((study.folder / "logs" / job.id).glob("rank?.log"))) == 4


def test_a_preempted_job_is_requeued_by_slurm_alone(study: Study, whole: Job) -> None:
    job = study.submit("preempted", seconds=WALK)
    study.hold(job, "preempted", 30)
    urgent = study.cluster.submit(
        "--wrap=sleep 1", options=("--partition=urgent", "--nodes=2", "--exclusive", "--time=5")
    )
    job.wait_until(lambda: job.state == "PENDING", "pending")
    assert summary(study.run("preempted"))["status"] == "preempted"
    urgent.wait_for("COMPLETED")
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert "DUE TO PREEMPTION" in job.output
    assert "convoy: requeued" not in job.output
    assert_continued(job, study, "preempted", whole)


def test_a_refused_config_is_not_requeued(study: Study) -> None:
    job = study.submit("refused", "--optimizer.lrr=1")
    job.wait_for("FAILED")
    assert job.fields()["ExitCode"] == "2:0"
    assert job.restarts == 0
    assert job.output.count("Did you mean 'optimizer.lr'?") == 1


def test_a_job_submitted_elsewhere_says_where_to_submit(study: Study, tmp_path: Path) -> None:
    job = study.cluster.submit(str(ROOT / "slurm/train.sbatch"), cwd=tmp_path)
    job.wait_for("FAILED")
    assert job.fields()["ExitCode"] == "2:0"
    assert "submit from inside the checkout, or set CONVOY_ROOT" in job.output
    assert len(job.output.splitlines()) == 1


def test_a_checkout_with_a_space_in_its_path(cluster: Cluster, tmp_path: Path) -> None:
    """Submitted from a folder inside it, by a shell with the traces of another launcher."""
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
        options=("--nodes=2", "--ntasks-per-node=1"),
        cwd=checkout / "slurm",
        env={"RANK": "7", "WORLD_SIZE": "9", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"},
    )
    job.wait_for("COMPLETED")
    assert summary(checkout / "runs" / "spaced out")["epoch"] == 3


def test_a_killed_slurmd_does_not_hang_the_job(study: Study, whole: Job) -> None:
    """Its node goes down, Slurm requeues the job, and the node's return lets it finish."""
    cluster = study.cluster
    job = study.submit("slurmd", seconds=WALK)
    study.hold(job, "slurmd", 30)
    cluster.kill_node("node2")
    try:
        job.wait_until(lambda: job.restarts == 1, "requeued")
    finally:
        cluster.start_node("node2")
    job.wait_for("COMPLETED")
    assert job.restarts == 1
    assert_continued(job, study, "slurmd", whole)
