"""When steps are taken in a row, and what is said where they cannot be recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from configs.load import load_config
from tests.support.processes import launch
from trainer.build import build
from trainer.loop import Run
from trainer.ranks.runtime import Runtime
from trainer.ranks.stop_signals import StopRequest
from trainer.stretching import BLOCK_BYTES, MOST_EXECUTED


@pytest.fixture
def parts(tmp_path: Path, idx_folder: Path) -> Iterator[Callable[..., Run]]:
    built: list[Run] = []
    before = torch.get_rng_state(), torch.get_float32_matmul_precision()

    def make(*overrides: str) -> Run:
        command = ["--config=idx", f"--data.root={idx_folder}", f"--output_dir={tmp_path}"]
        command += ["--train.global_batch_size=16", "--logging.progress=off"]
        command += ["--parallel.device=cpu", *overrides]
        config = load_config(command, prog="", description="")
        runtime = Runtime(launcher="python", device=torch.device(config.parallel.device))
        built.append(build(config, runtime, StopRequest()))
        return built[-1]

    yield make
    for part in built:
        part.sinks.finish("completed")
        part.saver.close()
    torch.set_rng_state(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.parametrize(
    ("overrides", "most"),
    [
        ([], MOST_EXECUTED),
        (["--train.ema_decay=0.9", "--train.clip_norm=1", "--schedule.name=cosine"], MOST_EXECUTED),
        (["--optimizer.name=sgd"], MOST_EXECUTED),
        (["--train.micro_batch_size=8"], 1),  # made ready together are whole batches
        (["--data.augment.shift=1"], 1),
        (["--data.placement=host"], 1),
        (["--compile.backward=autograd"], 1),
        (["--precision.dtype=bf16"], MOST_EXECUTED),
        (["--precision.dtype=fp16"], MOST_EXECUTED),
        (["--precision.dtype=fp16", "--compile.backward=autograd"], 1),  # a CPU is never behind
        (["--parallel.reduction=exact"], 1),
        (["--schedule.name=StepLR", "--schedule.kwargs.step_size=5"], 1),
        (["--optimizer.name=rmsprop"], 1),
        (["--profile.enabled=true"], 1),
    ],
)
def test_a_cpu_takes_steps_in_a_row_where_that_pays(
    parts: Callable[..., Run], overrides: list[str], most: int
) -> None:
    assert parts(*overrides).stretches.most == most


def test_large_batches_are_not_made_ready_together(
    parts: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies ready has to stay in the caches."""
    made = parts("--train.global_batch_size=100")
    num_bytes = 100 * made.loader.train.inputs[0].numel() * 4  # type: ignore[attr-defined]
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 3 * num_bytes)
    assert parts("--train.global_batch_size=100", "--name=other").stretches.most == 3


@pytest.mark.process
def test_recording_that_is_asked_for_and_impossible_is_refused(tmp_path: Path) -> None:
    finished = launch("launch/train.py", "--compile.capture=true", f"--output_dir={tmp_path}")
    assert finished.status == 2, finished.output
    assert "compile.capture" in finished.stderr
    assert "a CUDA device" in finished.stderr
    assert "--compile.capture auto" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--parallel.reduction=exact"], "parallel.reduction fast"),
        (["--data.placement=host"], "data in device memory"),
        (["--data.augment.mixup=0.2"], "no mixup"),
        (["--schedule.name=StepLR", "--schedule.kwargs.step_size=5"], "a function of the step"),
    ],
)
def test_what_a_gpu_cannot_record_is_named(
    gpu: torch.device, parts: Callable[..., Run], overrides: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        parts("--parallel.device=cuda", "--compile.capture=true", *overrides)
