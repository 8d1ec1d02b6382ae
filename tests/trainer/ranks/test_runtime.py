"""The device and the backend of a rank, and what is refused."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from datetime import timedelta
from typing import Literal

import pytest
import torch
import torch.distributed as dist

import trainer.ranks.runtime
from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from tests.support.time_outs import record_timeouts
from trainer.ranks.failures import Diverged
from trainer.ranks.runtime import Runtime, choose_device, process_group, use_training_timeout


def shared(error: InputError) -> InputError:
    error.shared = True
    return error


@pytest.fixture
def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")


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


def test_the_public_name_for_a_timeout_is_used_where_torch_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Since torch 2.14; the older name warns there, once per rank."""
    asked = record_timeouts(monkeypatch)
    runtime = Runtime(launcher="torchrun", world_size=2, local_world_size=2, backend="gloo")
    use_training_timeout(runtime, ParallelConfig(timeout_seconds=7))
    assert asked == [timedelta(seconds=7)]


@pytest.mark.parametrize(
    ("backend", "error", "ends"),
    [
        ("nccl", None, True),
        ("nccl", ValueError("of this rank alone"), False),
        ("nccl", InputError("of this rank alone"), False),
        ("cpu:gloo,cuda:nccl", KeyboardInterrupt(), False),
        ("nccl", shared(InputError("of all")), True),
        ("nccl", Diverged("on all"), True),
        ("gloo", ValueError("of this rank alone"), True),
    ],
)
def test_a_rank_that_fails_alone_does_not_wait_for_nccls_goodbye(
    monkeypatch: pytest.MonkeyPatch, backend: str, error: BaseException | None, ends: bool
) -> None:
    """The others are in a collective, and would not come: its error would never be shown."""
    ended: list[bool] = []
    monkeypatch.setattr(trainer.ranks.runtime, "_connect", lambda runtime, config: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(True))
    runtime = Runtime(launcher="torchrun", world_size=2, local_world_size=2, backend=backend)
    with (
        nullcontext() if error is None else pytest.raises(type(error)),
        process_group(runtime, ParallelConfig()),
    ):
        if error is not None:
            raise error
    assert bool(ended) is ends


@pytest.mark.parametrize("per_task", ["1", "h100:1"])
def test_a_rank_of_srun_that_sees_one_gpu_of_its_own_takes_it(
    monkeypatch: pytest.MonkeyPatch, per_task: str
) -> None:
    """`--gpus-per-task` may name the type of the GPU."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    runtime = Runtime(launcher="srun", rank=3, local_rank=3, world_size=4, local_world_size=4)
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", per_task)
    assert choose_device(runtime, ParallelConfig()).device == torch.device("cuda", 0)
    monkeypatch.delenv("SLURM_GPUS_PER_TASK")
    with pytest.raises(InputError, match="1 GPUs"):
        choose_device(runtime, ParallelConfig())
