"""Who am I among my peers: launcher detection, device and backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import pytest
import torch
import torch.distributed as dist

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from trainer.ranks.runtime import (
    Runtime,
    _first_host,
    _rendezvous,
    choose_device,
    detect,
    process_group,
)

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


@pytest.fixture
def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
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
        # MPI's variables count for less than anybody else's; one process of it is one process.
        (SRUN | {"PMI_SIZE": "5"}, ("srun", 2, 0, 5, 2)),
        (TORCHRUN | {"OMPI_COMM_WORLD_SIZE": "2"}, ("torchrun", 3, 1, 4, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, ("python", 0, 0, 1, 1)),
    ],
)
def test_every_launcher_is_recognised_by_its_variables(
    env: dict[str, str], expected: tuple[str, int, int, int, int]
) -> None:
    found = detect(env)
    assert (
        found.launcher,
        found.rank,
        found.local_rank,
        found.world_size,
        found.local_world_size,
    ) == expected
    assert found.is_main == (found.rank == 0)


def test_the_first_node_of_srun_may_be_smaller_than_the_others() -> None:
    env = SRUN | {"SLURM_TASKS_PER_NODE": "1,2(x2)", "SLURM_PROCID": "4", "SLURM_LOCALID": "1"}
    assert detect(env).local_rank == 1


@pytest.mark.parametrize(
    ("env", "named"),
    [
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
    ],
)
def test_variables_that_contradict_each_other_or_are_missing_are_refused(
    env: dict[str, str], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        detect(env)


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node[03-05,9],other", "node03"),
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("gpu-a[1,4-6]", "gpu-a1"),
        ("rack-1-node[001-128]", "rack-1-node001"),
        ("host.example.org,other", "host.example.org"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_a_slurm_node_list_is_found(nodelist: str, first: str) -> None:
    assert _first_host(nodelist) == first


@pytest.mark.parametrize(
    ("launcher", "env", "expected"),
    [
        ("torchrun", {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, "env://"),
        ("srun", {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, "env://"),
        ("srun", {"SLURM_NODELIST": "n[2-3]", "SLURM_JOB_ID": "40007"}, "tcp://n2:24007"),
        ("srun", {"SLURM_NODELIST": "n[2-3]", "MASTER_PORT": "29400"}, "tcp://n2:29400"),
    ],
)
def test_ranks_meet_where_the_launcher_says_or_on_the_first_node(
    launcher: str, env: dict[str, str], expected: str
) -> None:
    assert _rendezvous(Runtime(launcher=launcher, world_size=2), env) == expected


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("config", "key"),
    [
        (ParallelConfig(device="cuda"), "parallel.device"),
        (ParallelConfig(backend="nccl"), "parallel.backend"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(config: ParallelConfig, key: str) -> None:
    with pytest.raises(InputError, match=key):
        choose_device(Runtime(launcher="python"), config)


def test_nccl_on_a_cpu_is_refused_even_where_there_is_a_gpu() -> None:
    with pytest.raises(InputError, match="gloo"):
        choose_device(Runtime(launcher="python"), ParallelConfig(device="cpu", backend="nccl"))


@pytest.mark.parametrize(("world_size", "backend"), [(1, ""), (2, "gloo")])
def test_cpu_ranks_talk_over_gloo_and_a_single_rank_to_nobody(
    world_size: int, backend: str
) -> None:
    runtime = Runtime(launcher="torchrun", world_size=world_size, local_world_size=world_size)
    placed = choose_device(runtime, ParallelConfig(device="cpu"))
    assert placed == dataclasses.replace(runtime, device=torch.device("cpu"), backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("config", "backend"),
    [(ParallelConfig(), "nccl"), (ParallelConfig(device="cuda", backend="gloo"), "gloo")],
)
def test_each_rank_has_the_gpu_of_its_local_rank(
    gpu: torch.device, config: ParallelConfig, backend: str
) -> None:
    placed = choose_device(Runtime(launcher="torchrun", world_size=2), config)
    assert (placed.device, placed.backend) == (torch.device(gpu.type, 0), backend)


@pytest.mark.gpu
def test_more_ranks_than_gpus_are_refused(gpu: torch.device) -> None:
    num_gpus = torch.cuda.device_count()
    runtime = Runtime(
        launcher="torchrun",
        local_rank=num_gpus,
        rank=num_gpus,
        world_size=num_gpus + 1,
        local_world_size=num_gpus + 1,
    )
    with pytest.raises(InputError, match=f"{num_gpus} GPUs"):
        choose_device(runtime, ParallelConfig())
    assert choose_device(runtime, ParallelConfig(device="cpu")).device == torch.device("cpu")


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ParallelConfig(threads=2), 2),
        (ParallelConfig(reduction="exact"), 1),
        (ParallelConfig(reduction="exact", threads=2), 2),
        (ParallelConfig(), 3),
    ],
)
def test_a_single_rank_has_no_process_group_and_the_threads_it_was_promised(
    config: ParallelConfig, expected: int
) -> None:
    torch.set_num_threads(3)
    with process_group(Runtime(launcher="python"), config):
        assert not dist.is_initialized()
        assert torch.get_num_threads() == expected


ACCELERATE = ParallelConfig(engine="accelerate")


@pytest.mark.parametrize(
    ("found", "placed"),
    [("mps", torch.device("mps")), ("xpu", torch.device("xpu", 0)), (None, torch.device("cpu"))],
)
def test_the_device_of_another_maker_is_taken_under_accelerate_only(
    monkeypatch: pytest.MonkeyPatch, no_gpu: None, found: str | None, placed: torch.device
) -> None:
    device = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    alone = Runtime(launcher="python")
    assert choose_device(alone, ACCELERATE).device == placed
    assert choose_device(alone, ParallelConfig()).device == torch.device("cpu")
    assert choose_device(alone, dataclasses.replace(ACCELERATE, device="cpu")).device.type == "cpu"
    if found is not None:
        asked = ParallelConfig(engine="accelerate", device=found)  # type: ignore[arg-type]
        assert choose_device(alone, asked).device == placed
        with pytest.raises(InputError, match=rf"given 2, expected 1 on {found}.*device cpu"):
            choose_device(dataclasses.replace(alone, world_size=2), asked)
    wanted = ParallelConfig(engine="accelerate", device="mps" if found == "xpu" else "xpu")
    with pytest.raises(InputError, match=rf"which has {found or 'a CPU'}"):
        choose_device(alone, wanted)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_the_native_engine_refuses_such_a_device(device: Literal["mps", "xpu"]) -> None:
    with pytest.raises(InputError, match=r"parallel\.device.*engine accelerate"):
        ParallelConfig(device=device)
