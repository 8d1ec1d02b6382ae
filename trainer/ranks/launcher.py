"""Which launcher started this process, and which rank it is: the only reader of those variables.

It imports no torch, so that a command knows its rank before anything heavy is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from configs.errors import InputError

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What torchrun and `accelerate launch` set: rank, rank on its node, ranks, ranks on its node."""
SLURM_VARIABLES = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_TASKS_PER_NODE")
"""The same in the words of srun."""
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where Open MPI, MPICH and MVAPICH say how many processes they started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedRank:
    """This process as its launcher numbers it."""

    launcher: str
    """torchrun, accelerate, srun or python."""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether it is rank 0, which alone writes files and speaks."""
        return self.rank == 0


def detect(env: Mapping[str, str]) -> LaunchedRank:
    """Read rank and world size from what torchrun, accelerate or srun left in the environment.

    Raises:
        InputError: If the variables are incomplete or contradict each other.
    """
    launcher, names = _recognise(env)
    if launcher == "python":
        _refuse_mpirun(env)
        return LaunchedRank(launcher=launcher)
    try:
        rank, local_rank, world_size = (int(env[name]) for name in names[:3])
        # SLURM_TASKS_PER_NODE reads like "2(x2),1" and begins with the first node.
        local_world = int(re.split(r"\D", env.get(names[3], str(world_size)))[0])
    except (KeyError, ValueError) as error:
        raise _contradiction(env, names, f"a number for each ({error})") from None
    if not 0 <= rank < world_size:
        raise _contradiction(env, names, f"{names[0]} from 0 to {names[2]} - 1")
    most = world_size if launcher == "srun" else min(local_world, world_size)
    if not 0 <= local_rank < most:
        raise _contradiction(env, names, f"{names[1]} from 0 to {most - 1}")
    return LaunchedRank(
        launcher=launcher,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world,
    )


def guess(env: Mapping[str, str]) -> LaunchedRank:
    """The same for whoever reports an error: variables that `detect` refuses are taken one by one.

    Never raises. Where the variables are refused, a rank that is no number counts as 0 and a world
    size that is no number as 1; the local numbers are then 0 and 1.
    """
    try:
        return detect(env)
    except InputError:
        launcher, names = _recognise(env)
        rank, _, world_size, _ = (env.get(name, "") for name in names or RANK_VARIABLES)
        return LaunchedRank(
            launcher=launcher,
            rank=int(rank) if rank.isdecimal() else 0,
            world_size=int(world_size) if world_size.isdecimal() else 1,
        )


def _recognise(env: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """The launcher closest to this process, and its variables; none for plain python."""
    if "RANK" in env or "WORLD_SIZE" in env:
        accelerate = any(name.startswith("ACCELERATE_") for name in env)
        return ("accelerate" if accelerate else "torchrun"), RANK_VARIABLES
    # salloc's shell and the batch script are steps as well, with numbers from 0xFFFFFFF0 on; a step
    # of one task is one process, as without a launcher.
    step = env.get("SLURM_STEP_ID", "")
    in_srun_step = "SLURM_PROCID" in env and step.isdecimal() and int(step) < 0xFFFFFFF0
    if in_srun_step and env.get("SLURM_NTASKS", "1") != "1":
        return "srun", SLURM_VARIABLES
    return "python", ()


def _refuse_mpirun(env: Mapping[str, str]) -> None:
    """Its processes would each take themselves for the only rank of the run."""
    for name in MPI_SIZES:
        if env.get(name, "1") not in ("0", "1"):
            raise InputError(
                f"launcher variables ({name})",
                given=env[name],
                expected="ranks started by torchrun, srun or `accelerate launch --multi_gpu`",
                remedy="mpirun (which `accelerate launch --cpu` uses) is not supported.",
            )


def _contradiction(env: Mapping[str, str], names: tuple[str, ...], expected: str) -> InputError:
    return InputError(
        "launcher variables",
        given={name: env.get(name) for name in names},
        expected=expected,
        remedy="Start the ranks with torchrun or srun instead of setting them by hand.",
    )
