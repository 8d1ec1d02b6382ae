"""What jobs took, by what they printed and by sacct."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from configs.errors import InputError
from launch.submitting.job_summary import summarize
from tests.support.sample_runs import rows, write_run

LOG = """\
convoy: job 12, restart 0, 4 ranks on node[1-2], 2026-03-01 10:00:00
convoy: status 75, 2026-03-01 10:30:00
convoy: requeued
convoy: job 12, restart 1, 4 ranks on node[1-2], 2026-03-01 10:40:00
something a library prints
convoy: job 12, restart 2, 4 ranks on node[1-2], 2026-03-01 11:10:00
convoy: status 0, 2026-03-01 11:25:00
"""
SACCT = """\
12|REQUEUED|2026-03-01T10:00:00|2026-03-01T10:30:00|billing=8,cpu=8,gres/gpu=4,mem=8G,node=2
12|COMPLETED|2026-03-01T10:40:00|2026-03-01T11:25:00|billing=8,cpu=8,gres/gpu=4,mem=8G,node=2
"""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the log of a job, and no sacct."""
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "long-12.out").write_text(LOG)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


def run(tmp_path: Path, logs: Path, name: str = "long", **environment: object) -> Path:
    """A run that trained for an hour, the last time before 11:00, written down for job 12."""
    last = datetime.fromisoformat("2026-03-01 11:00:00").timestamp()
    path = write_run(
        tmp_path / name, [row | {"time": last} for row in rows()], threads=2, **environment
    )
    known = {"status": "completed", "step": 1234, "elapsed_seconds": 3600.0}
    (path / "summary.json").write_text(json.dumps(known))
    (logs / "12.json").write_text(json.dumps({"runs": [str(path)]}))
    return path


def test_by_what_the_job_has_printed(tmp_path: Path, logs: Path) -> None:
    """30, 20 and 15 minutes of 4 ranks; the second start ends with the last record it left."""
    path = run(tmp_path, logs)
    assert summarize(["12"], logs).splitlines() == [
        "job 12: status 0, restarts 2, 0:20:00 in the queue between them",
        "ran 1:05:00: 4.33 GPU hours",
        "trained 1:00:00, lost 0:05:00 (7.7%): starts, evaluation, checkpoints, steps taken again",
        "1 of the starts did not say when it ended: killed, or still running",
        f"{path}: completed at step 1,234",
    ]


def test_without_gpus_cores_are_counted(tmp_path: Path, logs: Path) -> None:
    run(tmp_path, logs, device="cpu")
    assert "ran 1:05:00: 8.67 CPU hours" in summarize(["12"], logs)


@pytest.mark.process
def test_by_slurm_s_accounting(tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run(tmp_path, logs)
    program = tmp_path / "bin" / "sacct"
    program.parent.mkdir()
    program.write_text(f"#!/bin/bash\necho '{SACCT.strip()}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.defpath}")
    assert summarize(["12"], logs).splitlines() == [
        "job 12: COMPLETED, restarts 1, 0:10:00 in the queue between them",
        "ran 1:15:00: 5.00 GPU hours",
        "trained 1:00:00, lost 0:15:00 (20.0%): starts, evaluation, checkpoints, steps taken again",
        f"{path}: completed at step 1,234",
    ]


def test_tasks_of_an_array_and_one_of_them(tmp_path: Path, logs: Path) -> None:
    begin, end = LOG.splitlines()[:2]
    for task in (1, 2):
        text = f"{begin}\n{end}\n".replace("job 12", f"job 20_{task}").replace("75", "0")
        (logs / f"study-20_{task}.out").write_text(text)
    paths = [run(tmp_path, logs, f"study_seed{seed}", device="cpu") for seed in (1, 2)]
    (logs / "20.json").write_text(json.dumps({"runs": [str(path) for path in paths]}))
    whole, one = summarize(["20"], logs), summarize(["20_2"], logs)
    assert whole.splitlines()[0] == "job 20: status 0, 2 tasks, restarts 0"
    assert "ran 1:00:00" in whole
    assert "trained 2:00:00, in other jobs as well" in whole
    assert "ran 0:30:00" in one
    assert [line.split(":")[0] for line in one.splitlines()[3:]] == [str(paths[1])]


def test_a_job_nothing_is_known_of_is_refused(logs: Path) -> None:
    with pytest.raises(InputError, match="--summary: given '13', expected a job that sacct knows"):
        summarize(["13"], logs)
    with pytest.raises(InputError, match="--summary: given '1;2', expected the id of a job"):
        summarize(["1;2"], logs)
