"""`deterministic: true`: what is set for it, what is refused by name, and what it keeps."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema import RunConfig
from configs.schema_execution import CompileConfig
from tests.support.odd_networks import Base
from tests.support.odd_runs import run
from tests.support.processes import begin, python_command, train, wait, wait_for_step
from tests.support.runs import assert_same_bits, train_here
from trainer.ranks.deterministic import WORKSPACE, deterministic_algorithms

ASKED = RunConfig(deterministic=True, compile=CompileConfig(enabled=False))
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONVOLUTIONAL = {
    "vit": '{"patch_size": 1, "depth": 2, "width": 16, "heads": 2, "dropout": 0.1}',
    "resnet18": "{}",
}


class Unpooling(Base):
    """Torch has no deterministic way to put pooled values back, on a CPU either."""

    def forward(self, inputs: Tensor) -> Tensor:
        pooled, where = torch.max_pool1d_with_indices(inputs[:, None], 2)
        back = torch.nn.functional.max_unpool1d(pooled, where, 2)
        return super().forward(back[:, 0])


def settings() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        os.environ.get(WORKSPACE),
    )


@pytest.mark.parametrize(("device", "workspace"), [(CPU, None), (CUDA, ":4096:8")])
def test_all_that_it_sets_is_put_back(device: torch.device, workspace: str | None) -> None:
    """cuBLAS reads its variable at its first use: it is there before anything has been computed."""
    before = settings()
    with suppress(KeyError), deterministic_algorithms(ASKED, device):
        assert settings() == (True, False, True, False, workspace)
        raise KeyError
    assert settings() == before
    with deterministic_algorithms(RunConfig(), device):
        assert settings() == before


def test_a_workspace_that_streams_race_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    monkeypatch.setenv(WORKSPACE, ":4096:2:16:8")
    with (
        pytest.raises(InputError, match=r"CUBLAS.*:4096:2:16:8.*:4096:8 or :16:8.*Leave it out"),
        deterministic_algorithms(ASKED, CUDA),
    ):
        pass
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic_algorithms(ASKED, CUDA):
        assert os.environ[WORKSPACE] == ":16:8"
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with (
        pytest.raises(InputError, match=r"has used the GPU.*Begin the program with os.environ"),
        deterministic_algorithms(ASKED, CUDA),
    ):
        pass
    assert settings() == before


def test_what_cannot_be_deterministic_is_refused_by_name(tmp_path: Path) -> None:
    """In one message, before anything is written; without the key it trains."""
    model = f"{__name__}:Unpooling"
    with pytest.raises(InputError, match=r"operation max_unpool\w+: .*--deterministic false"):
        run(tmp_path, model, "--deterministic=true")
    assert not (tmp_path / "run").exists()
    run(tmp_path, model, "--train.max_steps=2")


def test_kernels_chosen_by_their_time_are_refused() -> None:
    with pytest.raises(InputError, match=r"compile\.mode.*max-autotune.*by timing them"):
        RunConfig(deterministic=True, compile=CompileConfig(mode="max-autotune"))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_deterministic_run_continues_with_its_bits(
    name: str, tmp_path: Path, idx_folder: Path, one_thread: None
) -> None:
    options = ["--deterministic=true", f"--model.name={name}", "--train.epochs=1"]
    options += [f"--model.kwargs={CONVOLUTIONAL[name]}"]
    whole = train_here(tmp_path / "whole", idx_folder, *options, "--train.max_steps=9")
    for steps in (4, 9):
        parts = train_here(tmp_path / "parts", idx_folder, *options, f"--train.max_steps={steps}")
    assert_same_bits(whole, parts)


@pytest.mark.gpu
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_killed_run_on_the_gpu_ends_with_the_bits_of_one_left_alone(
    name: str, compiled: str, tmp_path: Path, idx_folder: Path, gpu: torch.device
) -> None:
    options = [
        "--config=idx",
        f"--data.root={idx_folder}",
        f"--output_dir={tmp_path}",
        f"--model.name={name}",
        f"--model.kwargs={CONVOLUTIONAL[name]}",
        "--deterministic=true",
        f"--compile.enabled={compiled}",
        f"--parallel.device={gpu.type}",
        "--train.global_batch_size=24",
        "--train.epochs=20",
        "--logging.every_steps=1",
        "--checkpoint.every_steps=7",
    ]
    train(*options, "--name=whole")
    process = begin(python_command("launch/train.py", *options, "--name=killed"))
    wait_for_step(tmp_path / "killed", 60, process)
    process.send_signal(signal.SIGKILL)
    wait(process)
    train(*options, "--name=killed")
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")
