"""slurm/array.sbatch: seeds, and a sweep from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, Job
from tests.slurm.study import CRAWL, STEPS, Study

pytestmark = [pytest.mark.slurm, pytest.mark.process]


def config(run: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text())
    return found


def test_three_seeds_one_of_them_stopped(study: Study) -> None:
    """Three run directories; only the task that was stopped is requeued.

    The task that is stopped is the one whose job id is also the id of the whole array.
    """
    cluster = study.cluster
    study.pace("seeds", CRAWL)
    arguments = [a for a in study.arguments("seeds") if not a.startswith("--name")]
    array = cluster.submit(
        "slurm/array.sbatch", *arguments, "--name=seeds", options=("--array=1-3", "--time=30")
    )
    tasks = {number: Job(cluster, f"{array.id}_{number}") for number in (1, 2, 3)}
    shared = next(job for job in tasks.values() if job.fields()["JobId"] == array.id)
    for number, job in tasks.items():
        study.reach(job, f"seeds_seed{number}", 5)
    shared.signal("USR1")
    shared.wait_until(lambda: shared.restarts == 1, "requeued")
    study.pace("seeds", 0.0)
    for number, job in tasks.items():
        job.wait_for("COMPLETED")
        assert job.restarts == (job is shared)
        run = study.run(f"seeds_seed{number}")
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["status"], summary["step"]) == ("completed", STEPS)
        assert config(run)["seed"] == number
        wandb = config(run)["logging"]["wandb"]  # type: ignore[index]
        assert (wandb["group"], wandb["job_type"]) == ("seeds", "seed")
    weights = {
        (study.run(f"seeds_seed{number}") / "checkpoints/latest/model.safetensors").read_bytes()
        for number in tasks
    }
    assert len(weights) == 3


def test_a_sweep_takes_its_overrides_from_the_lines_of_a_file(
    study: Study, cluster: Cluster, tmp_path: Path
) -> None:
    sweep = tmp_path / "my sweep.txt"
    sweep.write_text(
        "# width and learning rate\n\n"
        "--optimizer.lr 1e-3 --model.kwargs '{\"hidden\": [8]}'\n"
        '--optimizer.lr 3e-3 --model.kwargs.hidden "[4, 4]"\n'
    )
    array = cluster.submit(
        "slurm/array.sbatch",
        sweep,
        "--config=idx",
        f"--data.root={study.folder / 'idx'}",
        f"--output_dir={tmp_path}",
        "--train.epochs=1",
        options=("--array=1-3", "--time=30", "--job-name=sweep", "--cpus-per-task=2"),
    )
    for number, (rate, hidden) in {1: (1e-3, [8]), 2: (3e-3, [4, 4])}.items():
        Job(cluster, f"{array.id}_{number}").wait_for("COMPLETED")
        found = config(tmp_path / f"sweep_{array.id}_{number}")
        assert found["optimizer"]["lr"] == rate  # type: ignore[index]
        assert found["model"]["kwargs"]["hidden"] == hidden  # type: ignore[index]
        environment = tmp_path / f"sweep_{array.id}_{number}" / "environment.json"
        assert json.loads(environment.read_text())["threads"] == 2
    none = Job(cluster, f"{array.id}_3")
    none.wait_for("FAILED")
    assert none.fields()["ExitCode"] == "2:0"
    assert "has no line 3 for this task" in none.output
