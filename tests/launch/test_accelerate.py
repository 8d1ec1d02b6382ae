"""`parallel.engine: accelerate` under torchrun and `accelerate launch`: real gloo ranks."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import (
    ROOT,
    Finished,
    begin,
    launch,
    python_command,
    start,
    train,
    wait,
    wait_for_step,
)
from tests.support.runs import assert_same_bits, comparable

pytest.importorskip("accelerate")
pytestmark = pytest.mark.process

Arguments = Callable[..., list[str]]
ENGINE = "--parallel.engine=accelerate"
# Accumulation in micro-batches of 6, and a short last global batch, which 2 ranks share as 3 + 2.
EXTRA = (
    "--train.micro_batch_size=6",
    "--train.clip_norm=0.5",
    "--train.ema_decay=0.9",
    "--parallel.device=cpu",
    '--model.kwargs={"hidden": [24, 16], "dropout": 0.2, "batch_norm": true}',
)
NATIVE = "--compile.backward=autograd"
ONE_PORT = ("--main_process_port=0",)


def train_alone(arguments: list[str]) -> None:
    """A run of one rank, with one thread, in this process: quicker than another one."""
    from launch.train import main

    assert main([*arguments, "--parallel.threads=1", "--logging.progress=off"]) == 0


def accelerate_launch(
    *arguments: object, options: tuple[str, ...], env: dict[str, str] | None = None
) -> Finished:
    """`accelerate launch OPTIONS launch/train.py ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options]
    script = str(ROOT / "launch/train.py")
    return wait(start([*command, script, *map(str, arguments)], env=env))


@pytest.mark.slow
def test_two_ranks_have_the_bits_of_the_native_engine(small: Arguments, tmp_path: Path) -> None:
    """In fp32, stopped in mid-epoch and continued."""
    train(*small("native", *EXTRA, NATIVE, "--train.max_steps=30"), ranks=2)
    for steps in (13, 30):
        train(*small("parts", *EXTRA, ENGINE, f"--train.max_steps={steps}"), ranks=2)
    assert_same_bits(tmp_path / "native", tmp_path / "parts")
    assert comparable(tmp_path / "parts", 13) == comparable(tmp_path / "native", 13)


@pytest.mark.slow
def test_accelerate_launch_starts_two_ranks(small: Arguments, tmp_path: Path) -> None:
    """In bf16, as its own options say as well, from a checkpoint of the native engine."""
    extra = [*EXTRA, "--precision.dtype=bf16", "--train.max_steps=25"]
    train(*small("native", *extra, NATIVE), ranks=2)
    train(*small("accelerated", *extra, NATIVE, "--train.max_steps=9"), ranks=2)
    options = ("--multi_gpu", "--num_processes=2", "--mixed_precision=bf16")
    finished = accelerate_launch(
        *small("accelerated", *extra, ENGINE), options=(*options, *ONE_PORT)
    )
    assert finished.status == 0, finished.output
    assert_same_bits(tmp_path / "native", tmp_path / "accelerated")
    environment = json.loads((tmp_path / "accelerated/environment.json").read_text())
    assert environment["world_size"] == 2


def test_accelerate_launch_on_the_cpu_starts_one_process_and_says_so(
    small: Arguments, tmp_path: Path
) -> None:
    """It leaves several to mpirun. The run is the same on any number of ranks, so it goes on."""
    extra = [*EXTRA, "--parallel.device=auto", "--train.max_steps=25"]
    options = ("--cpu", "--num_processes=2", "--num_cpu_threads_per_process=1")
    finished = accelerate_launch(*small("accelerated", *extra, ENGINE), options=options)
    assert finished.status == 0, finished.output
    assert finished.stderr.count("has started one process") == 1
    train_alone(small("native", *extra, NATIVE, "--parallel.device=cpu"))
    assert_same_bits(tmp_path / "native", tmp_path / "accelerated")


def sharding(folder: Path) -> tuple[str, ...]:
    """Options of `accelerate launch` for two ranks under FSDP, as `accelerate config` writes it."""
    config = folder / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\n"
        "num_machines: 1\nnum_processes: 2\nmachine_rank: 0\nuse_cpu: false\n"
        "fsdp_config:\n  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n"
        "  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_state_dict_type: FULL_STATE_DICT\n"
    )
    return (f"--config_file={config}", *ONE_PORT)


@pytest.mark.slow
def test_fsdp_of_an_accelerate_config_is_that_of_the_native_engine(
    small: Arguments, tmp_path: Path
) -> None:
    """Bit for bit, in bf16, from a checkpoint of plain DDP under Accelerate."""
    extra = [*EXTRA, "--precision.dtype=bf16"]
    fsdp = ["--parallel.strategy=fsdp", "--train.max_steps=20"]
    for name in ("native", "accelerated"):
        train(*small(name, *extra, ENGINE, "--train.max_steps=9"), ranks=2)
    train(*small("native", *extra, *fsdp), ranks=2)
    finished = accelerate_launch(
        *small("accelerated", *extra, *fsdp, ENGINE), options=sharding(tmp_path)
    )
    assert finished.status == 0, finished.output
    assert_same_bits(tmp_path / "native", tmp_path / "accelerated")
    assert comparable(tmp_path / "accelerated", 9) == comparable(tmp_path / "native", 9)


def test_fsdp_that_only_accelerate_was_told_of_is_refused_once(
    small: Arguments, tmp_path: Path
) -> None:
    finished = accelerate_launch(
        *small("run", *EXTRA, ENGINE, "--precision.dtype=bf16"), options=sharding(tmp_path)
    )
    assert finished.status != 0
    assert finished.stderr.count("error: the accelerate config (ACCELERATE_USE_FSDP)") == 1
    assert "--parallel.strategy fsdp" in finished.stderr
    assert not (tmp_path / "run").exists()


def test_a_refusal_exits_with_2_and_writes_nothing(small: Arguments, tmp_path: Path) -> None:
    for env, more, named in (
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), "ACCELERATE_USE_DEEPSPEED"),
        ({}, ("--parallel.reduction=exact",), "parallel.reduction"),
    ):
        arguments = small("run", *EXTRA, ENGINE, *more)
        refused = launch("launch/train.py", *arguments, env=env)
        assert refused.status == 2, refused.output
        assert refused.stderr.count("error: ") == 1
        assert named in refused.stderr
        assert "Traceback" not in refused.output
    assert not (tmp_path / "run").exists()


def test_a_killed_run_goes_on_bit_for_bit(small: Arguments, tmp_path: Path) -> None:
    extra = [*EXTRA, ENGINE, "--train.epochs=4", "--checkpoint.every_steps=5"]
    process = begin(python_command("launch/train.py", *small("killed", *extra)))
    wait_for_step(tmp_path / "killed", 27, process)
    process.kill()
    assert wait(process).status == -signal.SIGKILL
    train_alone(small("killed", *extra))
    train_alone(small("whole", *extra))
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
