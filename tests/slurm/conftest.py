"""The virtual cluster, and the runs on it that several tests look at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, Job, missing_programs, start
from tests.slurm.study import RANKS, Study
from tests.support.data_sets import make_idx


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = missing_programs()
    if missing:
        pytest.skip(
            f"NOT TESTED ON SLURM: {', '.join(missing)} not on the PATH "
            "(Debian: apt-get install slurm-wlm munge)"
        )
    with start() as running:
        yield running


@pytest.fixture(scope="session")
def study(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    make_idx(folder / "idx")
    return Study(cluster, folder)


@pytest.fixture(scope="session")
def whole(study: Study) -> Job:
    """The undisturbed run that the others are compared with."""
    job = study.submit("whole")
    job.wait_for("COMPLETED")
    return job


@pytest.fixture(scope="session", autouse=True)
def beside(study: Study) -> dict[str, Job]:
    """Submitted first, to run beside the others: Slurm looks at time limits every 30 seconds.

    `notice` is signalled up to a minute early, 40 to 70 s after its start; `limit` is not. `early`
    is signalled as soon as its ranks are there.
    """
    early = study.submit("early")
    early.wait_until(early.has_step, "with a step")
    early.signal("USR1")
    notice = study.submit(
        "notice",
        "--logging.wandb.mode=online",
        options=(*RANKS, "--time=2", "--signal=USR1@20"),
        seconds=1.5,
        env={"WANDB_MODE": "offline"},
    )
    limit = study.submit("limit", options=(*RANKS, "--time=1", "--signal=CONT@0"), seconds=1.5)
    return {"early": early, "notice": notice, "limit": limit}
