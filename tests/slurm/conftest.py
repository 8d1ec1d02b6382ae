"""The virtual cluster, and the runs on it that several tests look at."""

from __future__ import annotations

import shlex
import shutil
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


def early_requests(study: Study) -> tuple[str, ...]:
    """Lines of a site. The first start of a job gets USR1 while they are read; the second after
    srun was called and before there are ranks, where Slurm drops it."""
    folder = study.folder / "slow"
    folder.mkdir()
    slow = folder / "srun"
    ask = 'scancel --batch --signal=USR1 "$SLURM_JOB_ID"'
    heard = "until [[ -n $STOP ]]; do sleep 0.1; done"
    slow.write_text(
        f"#!/bin/bash\nSTOP=''\ntrap 'STOP=dropped' USR1\n{ask}\n{heard}\n"
        f'exec {shutil.which("srun")} "$@"\n'
    )
    slow.chmod(0o755)
    return (
        "restart=${SLURM_RESTART_COUNT:-0}",
        f"if ((restart == 0)); then {ask}; {heard.replace('STOP', 'stop_asked')}; fi",
        f"if ((restart == 1)); then PATH={shlex.quote(str(folder))}:$PATH; fi",
    )


@pytest.fixture(scope="session", autouse=True)
def beside(study: Study) -> dict[str, Job]:
    """Submitted first, to run beside the others: Slurm looks at time limits every 30 seconds.

    `notice` is signalled up to a minute early, 100 to 160 s after its start; `limit` is not, and
    its second start has the three minutes, too: on a busy machine a start may take two.
    `early` asks itself to stop before its ranks run.
    """
    (early,), _ = study.submit_to_site("early", setup=early_requests(study))
    notice = study.submit(
        "notice",
        "--logging.wandb.mode=online",
        options=(*RANKS, "--time=3", "--signal=B:USR1@20"),
        seconds=2.2,
        env={"WANDB_MODE": "offline"},
    )
    limit = study.submit("limit", options=(*RANKS, "--time=3", "--signal=CONT@0"), seconds=3.0)
    return {"early": early, "notice": notice, "limit": limit}
