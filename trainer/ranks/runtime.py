"""The device of this rank, and the process group it belongs to."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from configs.errors import InputError, first_line
from configs.schema_execution import OTHER_DEVICES, ParallelConfig
from trainer.ranks import launcher
from trainer.ranks.cores import fair_threads
from trainer.ranks.failures import fails_everywhere
from trainer.ranks.host_memory import freed_memory_kept
from trainer.ranks.launcher import LaunchedRank
from trainer.ranks.peer_watch import answered_within, watched_ranks
from trainer.ranks.rendezvous import meet

LATE_SECONDS = 5.0
"""How much longer than parallel.init_timeout_seconds a start that hears nothing goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime(LaunchedRank):
    """This process among its peers: its rank, its device and how they talk."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    backend: str = ""
    """gloo, nccl or both; empty with one rank, which needs no process group."""

    @property
    def in_group(self) -> bool:
        """Whether it takes part in collectives: one of several ranks, or one alone in a group."""
        return self.world_size > 1 or bool(self.backend)


def detect(env: Mapping[str, str]) -> Runtime:
    """The rank that a launcher made of this process, before a device is chosen for it.

    Raises:
        InputError: If the launcher's variables are incomplete or contradict each other.
    """
    return Runtime(**asdict(launcher.detect(env)))


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
    # With `srun --gpus-per-task=[TYPE:]1` every rank sees its own GPU only, under the number 0.
    per_task = os.environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    own = runtime.launcher == "srun" and per_task == "1"
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


@contextmanager
def device_in_use(runtime: Runtime, config: ParallelConfig) -> Iterator[None]:
    """Inside, this rank's device computes as fast as it can; memory and denormal numbers are
    afterwards as usual."""
    use_device(runtime, config)
    try:
        with freed_memory_kept(runtime.device, runtime.local_world_size):
            yield
    finally:
        torch.set_flush_denormal(False)


def use_device(runtime: Runtime, config: ParallelConfig) -> None:
    """Make this rank's GPU the current one; CPU threads, and zero for denormal numbers there.

    Adam's averages of a unit that is dead, or of a weight without a gradient, decay below 1e-38
    after some 800 steps, and from then on arithmetic on them would take ten times as long. It must
    be set before the first parallel kernel: its threads inherit it.
    """
    torch.set_flush_denormal(True)
    # The order of additions inside a matrix product depends on the number of threads.
    if config.threads is not None or config.reduction == "exact":
        torch.set_num_threads(config.threads or 1)
    else:
        most = fair_threads(runtime.local_world_size, os.environ)
        if most < torch.get_num_threads():  # to set what is set already would change what MKL does
            torch.set_num_threads(int(most))
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)


@contextmanager
def process_group(runtime: Runtime, config: ParallelConfig) -> Iterator[None]:
    """The default process group of all ranks, ended on the way out; nothing with one rank.

    NCCL ends a group once all ranks of the machine do. A rank that fails by itself would wait for
    the others, and they for it in a collective, until their time is up: it leaves the group as it
    is, says what has happened, and is missed.

    Raises:
        InputError: If the ranks cannot find each other within parallel.init_timeout_seconds.
    """
    with device_in_use(runtime, config):
        if runtime.world_size == 1:
            yield
        else:
            _connect(runtime, config)
            ends = True
            try:
                yield
            except BaseException as error:
                ends = "nccl" not in runtime.backend or fails_everywhere(error)
                raise
            finally:
                _more_groups.clear()
                while _endings:
                    _endings.pop()()
                if ends:
                    dist.destroy_process_group()


def _connect(runtime: Runtime, config: ParallelConfig) -> None:
    """Make the default process group, once all ranks have come."""
    timeout = timedelta(seconds=config.init_timeout_seconds)
    _in_force[0] = config.init_timeout_seconds
    late = f"error: {_not_connected(runtime, config, 'the store does not answer')}"
    try:
        with answered_within(config.init_timeout_seconds + LATE_SECONDS, late, status=2):
            store, session = meet(runtime, os.environ, timeout)
            with watched_ranks(store, session, runtime.rank, runtime.world_size):
                dist.init_process_group(
                    runtime.backend,
                    store=PrefixStore(session, store),
                    rank=runtime.rank,
                    world_size=runtime.world_size,
                    timeout=timeout,
                    device_id=runtime.device if runtime.device.type == "cuda" else None,
                )
    except (dist.DistError, ValueError, RuntimeError, TimeoutError) as error:
        raise _not_connected(runtime, config, first_line(error)) from None


def _not_connected(runtime: Runtime, config: ParallelConfig, reason: str) -> InputError:
    return InputError(
        f"the {runtime.world_size} ranks could not connect ({reason})",
        expected="every rank started and reachable within "
        f"{config.init_timeout_seconds:.0f} s (parallel.init_timeout_seconds)",
        remedy="Check MASTER_ADDR and MASTER_PORT, and that all nodes were started.",
    )


def use_training_timeout(runtime: Runtime, config: ParallelConfig) -> None:
    """From now on a silent rank is given up on after parallel.timeout_seconds."""
    _use_timeout(runtime, config.timeout_seconds)


def use_starting_timeout(runtime: Runtime, config: ParallelConfig) -> None:
    """From now on ranks have as much time as at the start, or as in training if that is more."""
    _use_timeout(runtime, max(config.init_timeout_seconds, config.timeout_seconds))


def timeout_in_force() -> float:
    """Seconds after which a collective that begins now is given up on."""
    return _in_force[0]


_in_force = [math.inf]
"""Of the default process group, which is the process's own too."""
_more_groups: list[dist.ProcessGroup] = []
"""Of some of the ranks, whose time-out is the same."""


_endings: list[Callable[[], None]] = []
"""What is done before the default process group ends."""


def at_the_end(call: Callable[[], None]) -> None:
    """Call something before the default process group ends, also where a rank fails."""
    _endings.append(call)


def _use_timeout(runtime: Runtime, seconds: float) -> None:
    """What is waited for already keeps the time that it had."""
    if runtime.world_size > 1:
        _in_force[0] = seconds
        for group in (None, *_more_groups):
            _limit_wait(group)


def share_timeout(group: dist.ProcessGroup) -> None:
    """Let the time-out in force, now and later, be that of a group of some ranks as well."""
    _more_groups.append(group)
    _limit_wait(group)


def _limit_wait(group: dist.ProcessGroup | None) -> None:
    # Public since torch 2.14, where the old name warns.
    public = getattr(dist, "set_timeout", None)
    set_timeout = public or dist.distributed_c10d._set_pg_timeout
    set_timeout(timedelta(seconds=_in_force[0]), group)
