"""Which launcher started this process, which rank it is, and the process group it belongs to."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist

from configs.errors import InputError
from configs.schema_execution import OTHER_DEVICES, ParallelConfig
from trainer.ranks.rendezvous import agent_store

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where Open MPI, MPICH and MVAPICH say how many processes they started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """This process among its peers."""

    launcher: str
    """torchrun, accelerate, srun or python."""
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str = ""
    """gloo, nccl or both; empty with one rank, which needs no process group."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def detect(env: Mapping[str, str]) -> Runtime:
    """Read rank and world size from what torchrun, accelerate or srun left in the environment.

    Raises:
        InputError: If the variables are incomplete or contradict each other.
    """
    if "RANK" in env or "WORLD_SIZE" in env:
        launcher = "accelerate" if any(k.startswith("ACCELERATE_") for k in env) else "torchrun"
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    elif _in_srun_step(env) and env.get("SLURM_NTASKS", "1") != "1":
        launcher = "srun"
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_TASKS_PER_NODE")
    else:
        _refuse_mpirun(env)
        return Runtime(launcher="python")
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
    return Runtime(
        launcher=launcher,
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world,
    )


def _in_srun_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process; salloc's shell and the batch script are steps as well."""
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdecimal() and int(step) < 0xFFFFFFF0


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


def choose_device(runtime: Runtime, config: ParallelConfig) -> Runtime:
    """Choose the device and the backend, or say why the ones asked for cannot be had.

    Raises:
        InputError: For a GPU that is not there, fewer GPUs than ranks, or NCCL without a GPU.
    """
    # `accelerate launch --cpu`, where the config leaves the device open.
    cpu = config.device == "auto" and config.engine == "accelerate" and wants_cpu(os.environ)
    if config.engine == "accelerate" and config.device not in ("cpu", "cuda") and not cpu:
        other = _other_device(runtime, config)
        if other is not None:
            return replace(runtime, device=other)
    num_gpus = torch.cuda.device_count() if config.device != "cpu" and not cpu else 0
    if config.device == "cuda" and num_gpus == 0:
        raise InputError(
            "parallel.device",
            given="cuda",
            expected="a CUDA device on this machine",
            remedy="Use --parallel.device cpu, or a torch build with CUDA on a machine with a GPU.",
        )
    # With `srun --gpus-per-task` every rank sees its own GPU only, under the number 0.
    own = runtime.launcher == "srun" and os.environ.get("SLURM_GPUS_PER_TASK") == "1"
    index = 0 if own and num_gpus == 1 else runtime.local_rank
    if num_gpus and index >= num_gpus:
        raise InputError(
            "ranks on this node",
            given=runtime.local_world_size,
            expected=f"at most one for each of the {num_gpus} GPUs",
            remedy=f"Start {num_gpus} ranks per node, or use --parallel.device cpu.",
        )
    if config.backend == "nccl" and num_gpus == 0:
        raise InputError(
            "parallel.backend",
            given="nccl",
            expected="gloo, because no GPU is used",
            remedy="NCCL connects GPUs only: leave parallel.backend at auto.",
        )
    device = torch.device("cuda", index) if num_gpus else torch.device("cpu")
    backend: str = config.backend
    if backend == "auto":
        backend = "nccl" if num_gpus else "gloo"
    if config.cpu_offload and backend == "nccl":
        backend = "cpu:gloo,cuda:nccl"  # norms are summed, and weights gathered, in host memory
    return replace(runtime, device=device, backend=backend if runtime.world_size > 1 else "")


def _other_device(runtime: Runtime, config: ParallelConfig) -> torch.device | None:
    """Apple's or Intel's GPU, if the config or the machine says so; None: a CPU or CUDA GPUs."""
    found = torch.accelerator.current_accelerator(check_available=True)
    kind = None if found is None else found.type
    if config.device in OTHER_DEVICES and kind != config.device:
        raise InputError(
            "parallel.device",
            given=config.device,
            expected=f"a device of this machine, which has {kind or 'a CPU'}",
            remedy="Use --parallel.device auto, or a torch build for that device.",
        )
    if kind not in OTHER_DEVICES:
        return None
    if runtime.world_size > 1:
        raise InputError(
            "ranks of this run",
            given=runtime.world_size,
            expected=f"1 on {kind}",
            remedy="Start one process, or use --parallel.device cpu.",
        )
    return torch.device(kind) if kind == "mps" else torch.device(kind, 0)


def wants_cpu(env: Mapping[str, str]) -> bool:
    """Whether an accelerate config asks for the CPU."""
    return env.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes", "on")


def use_device(runtime: Runtime, config: ParallelConfig) -> None:
    """Make this rank's GPU the current one; CPU threads, and zero for denormal numbers there.

    Adam's averages of a unit that is dead, or of a weight without a gradient, decay below 1e-38
    after some 800 steps, and from then on arithmetic on them would take ten times as long. It must
    be set before the first parallel kernel: its threads inherit it.
    """
    torch.set_flush_denormal(True)
    if config.threads is not None or config.reduction == "exact":
        # The order of additions inside a matrix product depends on the number of threads.
        torch.set_num_threads(config.threads or 1)
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)


@contextmanager
def process_group(runtime: Runtime, config: ParallelConfig) -> Iterator[None]:
    """The default process group of all ranks, ended on the way out; nothing with one rank.

    Raises:
        InputError: If the ranks cannot find each other within parallel.init_timeout_seconds.
    """
    use_device(runtime, config)
    if runtime.world_size == 1:
        try:
            yield
        finally:
            torch.set_flush_denormal(False)
        return
    timeout = timedelta(seconds=config.init_timeout_seconds)
    try:
        store = agent_store(os.environ, runtime.rank, runtime.world_size, timeout)
        dist.init_process_group(
            runtime.backend,
            store=store,
            init_method=_rendezvous(runtime, os.environ) if store is None else None,
            rank=runtime.rank,
            world_size=runtime.world_size,
            timeout=timeout,
            device_id=runtime.device if runtime.device.type == "cuda" else None,
        )
    except (dist.DistError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(
            f"the {runtime.world_size} ranks could not connect ({_first_line(error)})",
            expected="every rank started and reachable within "
            f"{config.init_timeout_seconds:.0f} s (parallel.init_timeout_seconds)",
            remedy="Check MASTER_ADDR and MASTER_PORT, and that all nodes were started.",
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_flush_denormal(False)


def use_training_timeout(runtime: Runtime, config: ParallelConfig) -> None:
    """From now on a silent rank is given up on after parallel.timeout_seconds."""
    if runtime.world_size > 1:
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=config.timeout_seconds))


def _rendezvous(runtime: Runtime, env: Mapping[str, str]) -> str:
    """env:// when the launcher set MASTER_ADDR; srun alone leaves it to us."""
    if runtime.launcher != "srun" or "MASTER_ADDR" in env:
        return "env://"
    address = _first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST", ""))
    if "SLURM_LAUNCH_NODE_IPADDR" in env and not _resolves(address):
        # Where srun was called: in a batch job that is the first node, too.
        address = env["SLURM_LAUNCH_NODE_IPADDR"]
    port = env.get("MASTER_PORT") or str(20000 + int(env.get("SLURM_JOB_ID", "0")) % 12000)
    return f"tcp://{address}:{port}"


def _first_host(nodelist: str) -> str:
    """`node[03-05,9],other` -> `node03`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodelist)
    return (match[1] + (match[2] or "")) if match else "127.0.0.1"


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
