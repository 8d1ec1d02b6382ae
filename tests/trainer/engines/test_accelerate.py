"""Accelerate's engine: one owner for every question, and the native engine's arithmetic."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from configs.schema_execution import CompileConfig, ParallelConfig
from configs.schema_training import PrecisionConfig
from tests.support.processes import start, wait
from tests.support.runs import assert_same_bits, series
from trainer.build import assemble
from trainer.engines.accelerate import AccelerateEngine
from trainer.engines.accelerate_config import check_accelerate
from trainer.ranks.runtime import Runtime, choose_device

pytest.importorskip("accelerate")

pytestmark = pytest.mark.usefixtures("one_thread")

Arguments = Callable[..., list[str]]
ALONE = Runtime(launcher="python")
ACCELERATE = RunConfig(parallel=ParallelConfig(engine="accelerate"))


def train_here(arguments: list[str]) -> None:
    from launch.train import main

    assert main([*arguments, "--logging.progress=off"]) == 0


@pytest.mark.parametrize(
    "precision",
    [
        ["--precision.dtype=fp32"],
        ["--precision.dtype=bf16"],
        # The first steps overflow and are skipped.
        ["--precision.dtype=fp16", "--precision.init_scale=1e9"],
    ],
    ids=["fp32", "bf16", "fp16"],
)
def test_one_rank_has_the_bits_of_the_native_engine(
    small: Arguments, tmp_path: Path, precision: list[str]
) -> None:
    """Accumulation, dropout, clipping, EMA; checkpoints of either engine continue under the other.

    One process trains all of these runs: Accelerate's state of one does not reach the next.
    """
    extra = [*precision, "--train.micro_batch_size=6", "--train.clip_norm=0.5"]
    extra += ["--train.ema_decay=0.9", "--parallel.device=cpu", "--train.epochs=4"]
    native = ["--compile.backward=autograd"]
    accelerate = ["--parallel.engine=accelerate"]
    train_here(small("whole", *extra, *native, "--train.max_steps=30"))
    for steps, engine in ((9, accelerate), (17, native), (30, accelerate)):
        train_here(small("mixed", *extra, *engine, f"--train.max_steps={steps}"))
    assert_same_bits(tmp_path / "whole", tmp_path / "mixed")
    for key in ("train/loss", "train/grad_norm", "train/skipped_steps", "eval/loss"):
        # Where a part ends there is an evaluation more.
        assert set(series(tmp_path / "whole", key)) <= set(series(tmp_path / "mixed", key))
    if "fp16" in precision[0]:
        assert series(tmp_path / "whole", "train/skipped_steps")[-1] > 3


def test_building_leaves_the_environment_as_it_was(
    small: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: Accelerate is told of ranks in variables that are gone, or back, afterwards.

    LOCAL_RANK alone would have it begin a process group of one.
    """
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = dict(os.environ)
    config = load_config(
        small("run", "--parallel.engine=accelerate", "--parallel.device=cpu"),
        prog="test",
        description="",
    )
    bench = assemble(config, ALONE)
    assert isinstance(bench.state.engine, AccelerateEngine)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == 1
    assert bench.state.engine.accelerator.device == torch.device("cpu")
    assert bench.state.engine.accelerator.scaler is None
    assert bench.state.engine.gradient_scale == 1.0


def test_an_accelerator_that_sees_other_ranks_is_refused(small: Arguments, tmp_path: Path) -> None:
    """Here the process group has one rank where the launcher said two."""
    config = load_config(
        small("run", "--parallel.engine=accelerate", "--parallel.device=cpu"),
        prog="test",
        description="",
    )
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(InputError, match=r"rank 0 of 1 on cpu.*rank 1 of 2 on cpu"):
            assemble(config, replace(ALONE, rank=1, world_size=2))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "strategy fsdp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "accelerate config"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "leave it out"),
        ({"ACCELERATE_USE_SAGEMAKER": "true"}, "torchrun"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "precision.dtype=fp32"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "precision.dtype=fp32"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "train.micro_batch_size"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "compile.enabled"),
        ({"ACCELERATE_TORCH_DEVICE": "mps"}, "parallel.device"),
    ],
)
def test_a_config_of_accelerate_that_contradicts_the_run_is_refused(
    env: dict[str, str], named: str
) -> None:
    """Each message names the variable, and the key or the option to use instead."""
    with pytest.raises(InputError, match=named) as caught:
        check_accelerate(ACCELERATE, ALONE, env)
    assert next(iter(env)) in str(caught.value)


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"FSDP_VERSION": "1"}, "parallel.strategy=fsdp"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, "parallel.reshard_after_forward=true"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "shard_grad_op"}, "parallel.reshard_after_forward=true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "parallel.cpu_offload=false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "parallel.activation_checkpointing=false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, "parallel.activation_checkpointing"),
        ({"FSDP_IGNORED_MODULES": "head"}, "every weight"),
    ],
)
def test_sharding_that_is_not_the_runs_own_is_refused(more: dict[str, str], named: str) -> None:
    parallel = ParallelConfig(engine="accelerate", strategy="fsdp")
    with pytest.raises(InputError, match=named) as caught:
        check_accelerate(replace(ACCELERATE, parallel=parallel), ALONE, FSDP | more)
    assert next(iter(more)) in str(caught.value)


@pytest.mark.parametrize("reshard", ["true", "full_shard"])
def test_sharding_that_is_the_runs_own_is_accepted(
    reshard: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As `accelerate config` writes it down by itself, and with both ways to save memory."""
    env = {
        "FSDP_SHARDING_STRATEGY": "1",
        "FSDP_RESHARD_AFTER_FORWARD": reshard,
        "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
    }
    parallel = ParallelConfig(
        engine="accelerate", strategy="fsdp", cpu_offload=True, activation_checkpointing=True
    )
    check_accelerate(replace(ACCELERATE, parallel=parallel), ALONE, FSDP | env)
    assert caplog.records == []


def test_what_accelerate_launch_sets_when_nothing_is_asked_for_is_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    for dtype in ("fp32", "bf16", "fp16"):
        check_accelerate(replace(ACCELERATE, precision=PrecisionConfig(dtype=dtype)), ALONE, env)
    bf16 = replace(ACCELERATE, precision=PrecisionConfig(dtype="bf16"))
    check_accelerate(bf16, ALONE, env | {"ACCELERATE_MIXED_PRECISION": "bf16"})
    assert caplog.records == []


def test_accelerate_launch_that_starts_one_process_for_several_is_pointed_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    with caplog.at_level(logging.WARNING, "convoy"):
        check_accelerate(ACCELERATE, replace(ALONE, launcher="torchrun"), env)
        assert not caplog.messages
        check_accelerate(ACCELERATE, ALONE, env)
    assert "has started one process" in caplog.text


def test_the_cpu_that_accelerate_asks_for_is_used_where_the_config_leaves_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a GPU that the config asks for, it is a contradiction."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    placed = choose_device(ALONE, ACCELERATE.parallel)
    assert placed.device == torch.device("cpu")
    with pytest.raises(InputError, match="ACCELERATE_USE_CPU"):
        check_accelerate(ACCELERATE, replace(ALONE, device=torch.device("cuda", 0)), os.environ)


def test_what_only_the_native_engine_does_is_refused_before_anything_is_built() -> None:
    with pytest.raises(InputError, match=r"parallel\.reduction.*engine native"):
        ParallelConfig(engine="accelerate", reduction="exact")
    with pytest.raises(InputError, match=r"parallel\.compression.*engine native"):
        ParallelConfig(engine="accelerate", compression="bf16")
    with pytest.raises(InputError, match=r"compile\.backward.*native engine"):
        replace(ACCELERATE, compile=CompileConfig(backward="explicit"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"accelerate is not installed.*\[accelerate\]"):
        check_accelerate(ACCELERATE, ALONE, {})


@pytest.mark.process
def test_a_run_of_the_native_engine_does_not_import_accelerate(small: Arguments) -> None:
    """The second run shows that an import would have been seen."""
    script = """
import sys
from launch.train import main
for engine in ("native", "accelerate"):
    status = main([*sys.argv[1:], f"--parallel.engine={engine}", f"--name={engine}"])
    print("IMPORTED", engine, status, "accelerate" in sys.modules)
"""
    arguments = small("run", "--train.max_steps=1", "--parallel.device=cpu")
    finished = wait(start([sys.executable, "-c", script, *arguments]))
    found = [line for line in finished.stdout.splitlines() if line.startswith("IMPORTED")]
    expected = ["IMPORTED native 0 False", "IMPORTED accelerate 0 True"]
    assert found == expected, finished.output


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_gpu_has_the_bits_of_the_native_engine(
    gpu: torch.device, small: Arguments, tmp_path: Path, dtype: str
) -> None:
    """Compiled or not, the passes are the same."""
    extra = [f"--precision.dtype={dtype}", "--train.max_steps=30", "--train.micro_batch_size=12"]
    for compiled in ("false", "true"):
        extra.append(f"--compile.enabled={compiled}")
        train_here(small(f"native-{compiled}", *extra, "--compile.backward=autograd"))
        train_here(small(f"accelerate-{compiled}", *extra, "--parallel.engine=accelerate"))
        assert_same_bits(tmp_path / f"native-{compiled}", tmp_path / f"accelerate-{compiled}")
