"""Who am I among my peers: what every launcher leaves in the environment."""

from __future__ import annotations

import os
from dataclasses import astuple

import pytest

from configs.errors import InputError
from launch import entry
from tests.support.processes import run_code
from trainer.ranks import runtime
from trainer.ranks.launcher import MPI_SIZES, RANK_VARIABLES, SLURM_VARIABLES, detect, guess

TORCHRUN = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "5",
    "SLURM_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_ID": "0",
}


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


RECOGNISED: list[tuple[dict[str, str], tuple[str, int, int, int, int]]] = [
    ({}, ("python", 0, 0, 1, 1)),
    (TORCHRUN, ("torchrun", 3, 1, 4, 2)),
    ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, ("torchrun", 0, 0, 1, 1)),
    (TORCHRUN | {"ACCELERATE_MIXED_PRECISION": "no"}, ("accelerate", 3, 1, 4, 2)),
    (SRUN, ("srun", 2, 0, 5, 2)),
    (SRUN | {"SLURM_TASKS_PER_NODE": "5"}, ("srun", 2, 0, 5, 5)),
    # torchrun under Slurm: the launcher closest to the process has the last word.
    (SRUN | TORCHRUN, ("torchrun", 3, 1, 4, 2)),
    # The batch script itself, before any srun, and a step of a single task.
    (without(SRUN, "SLURM_STEP_ID"), ("python", 0, 0, 1, 1)),
    (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, ("python", 0, 0, 1, 1)),
    # The shell of an allocation, by `salloc -n 4`: as many tasks as you like, none started.
    ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, ("python", 0, 0, 1, 1)),
    # The same where salloc starts the shell as a step of its own: 0xFFFFFFFA is interactive.
    (SRUN | {"SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}, ("python", 0, 0, 1, 1)),
    # MPI's variables count for less than anybody else's; one process of it is one process.
    (SRUN | {"PMI_SIZE": "5"}, ("srun", 2, 0, 5, 2)),
    (TORCHRUN | {"OMPI_COMM_WORLD_SIZE": "2"}, ("torchrun", 3, 1, 4, 2)),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, ("python", 0, 0, 1, 1)),
]
REFUSED: list[tuple[dict[str, str], str]] = [
    (TORCHRUN | {"RANK": "4"}, "RANK"),
    (TORCHRUN | {"RANK": "-1"}, "RANK"),
    (TORCHRUN | {"RANK": "first"}, "RANK"),
    (TORCHRUN | {"RANK": ""}, "RANK"),
    (TORCHRUN | {"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE"),
    (TORCHRUN | {"WORLD_SIZE": "4.0"}, "WORLD_SIZE"),
    (TORCHRUN | {"LOCAL_RANK": "x"}, "LOCAL_RANK"),
    (TORCHRUN | {"LOCAL_RANK": "-1"}, "LOCAL_RANK"),
    (TORCHRUN | {"LOCAL_RANK": "2"}, "LOCAL_RANK"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": ""}, "LOCAL_WORLD_SIZE"),
    (without(TORCHRUN, "RANK"), "RANK"),
    (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE"),
    (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK"),
    (SRUN | {"SLURM_PROCID": "5"}, "SLURM_PROCID"),
    (SRUN | {"SLURM_PROCID": "x"}, "SLURM_PROCID"),
    (SRUN | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS"),
    (SRUN | {"SLURM_TASKS_PER_NODE": "(x2)"}, "SLURM_TASKS_PER_NODE"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE"),
    ({"PMI_SIZE": "4"}, "PMI_SIZE"),
]


@pytest.mark.parametrize(("env", "expected"), RECOGNISED)
def test_every_launcher_is_recognised_by_its_variables(
    env: dict[str, str], expected: tuple[str, int, int, int, int]
) -> None:
    found = detect(env)
    assert astuple(found) == expected
    assert found.is_main == (found.rank == 0)


@pytest.mark.parametrize("env", [env for env, _ in RECOGNISED])
def test_commands_and_the_run_agree_on_who_they_are(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: there is one detection; the run adds a device to what it says."""
    for name in [*RANK_VARIABLES, *SLURM_VARIABLES, *MPI_SIZES, "SLURM_STEP_ID"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = runtime.detect(os.environ)
    assert astuple(found)[:5] == astuple(detect(env)) == astuple(guess(env))
    assert (entry.rank(), entry.num_ranks()) == (found.rank, found.world_size)
    assert entry.is_main_process() == found.is_main


def test_the_first_node_of_srun_may_be_smaller_than_the_others() -> None:
    env = SRUN | {"SLURM_TASKS_PER_NODE": "1,2(x2)", "SLURM_PROCID": "4", "SLURM_LOCALID": "1"}
    assert detect(env).local_rank == 1


@pytest.mark.parametrize(("env", "named"), REFUSED)
def test_variables_that_contradict_each_other_or_are_missing_are_refused(
    env: dict[str, str], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        detect(env)


@pytest.mark.parametrize(("env", "named"), REFUSED)
def test_whoever_reports_an_error_gets_an_answer_all_the_same(
    env: dict[str, str], named: str
) -> None:
    """Law: the variables are refused once, by the run, and never while an error is reported."""
    found = guess(env)
    rank = env.get("RANK") or env.get("SLURM_PROCID") or "0"
    assert found.rank == (int(rank) if rank.isdecimal() else 0)


@pytest.mark.process
def test_a_command_knows_its_rank_before_torch_is_loaded() -> None:
    """Law: a wrong key is refused, and said by one rank, within the time Python takes to start."""
    script = "import sys, launch.entry as e; print(e.rank(), e.num_ranks(), 'torch' in sys.modules)"
    finished = run_code(script, env=TORCHRUN)
    assert finished.stdout.split() == ["3", "4", "False"], finished.output
