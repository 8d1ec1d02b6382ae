"""Run by torchrun: how much memory a rank takes to build, step, save and load a shared model.

Takes the bytes of one rank's part of the weights, whether checkpoints are written in parts, and a
folder. Rank 0 prints, as JSON, the most that any rank took beyond what it held before, in bytes.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from configs.load import load_config
from data.datasets import ArrayDataset, Datasets
from launch.entry import run_command
from trainer.build import build
from trainer.engines.fsdp import ShardedEngine
from trainer.loop import Run, take_steps
from trainer.ranks.collectives import barrier, gather_objects
from trainer.ranks.stop_signals import StopRequest
from trainer.session import joined

LAYERS = 8
"""Square ones, each as large as a rank's part if there are as many ranks."""


def samples() -> Datasets:
    """Inputs `(16,)` of four classes."""
    inputs = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    part = ArrayDataset(inputs, torch.arange(256) % 4)
    return Datasets(train=part, test=part, input_shape=(16,), num_classes=4)


def resident_bytes(key: str = "VmRSS") -> int:
    """Resident memory of this process; VmHWM: the most since the mark was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


@contextmanager
def watched(found: dict[str, int], name: str) -> Iterator[None]:
    """Note how far resident memory rises above what it was."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM
    before = resident_bytes()
    yield
    found[name] = resident_bytes("VmHWM") - before


def examine(arguments: Sequence[str]) -> dict[str, int]:
    share, in_parts, folder = int(arguments[0]), arguments[1], arguments[2]
    width = math.isqrt(share // 4)
    options = [
        "--data.dataset=benchmarks.measure.shared_model:samples",
        "--model.name=mlp",
        f"--model.kwargs={{hidden: {[width] * (LAYERS + 1)}, dropout: 0}}",
        "--train.global_batch_size=64",
        f"--output_dir={folder}",
        "--logging.progress=off",
        "--parallel.strategy=fsdp",
        "--parallel.device=cpu",
        f"--checkpoint.sharded={in_parts}",
    ]
    config = load_config(options, prog="shared_model", description="")
    found: dict[str, int] = {}
    stop = StopRequest()
    with joined(config) as runtime:
        with watched(found, "building"):
            run = build(config, runtime, stop)
        with watched(found, "the first step"):
            assert isinstance(run.state.engine, ShardedEngine)  # imported before it is watched
            batches = run.loader.stream(0)
            take_steps(run, batches)
        with watched(found, "saving"):
            run.checkpointer.save()
            run.checkpointer.wait()
            barrier(runtime)
        leave(run)
        del run, batches
        with watched(found, "loading"):
            leave(build(config, runtime, stop))
        every = gather_objects(runtime, found)
    return {name: max(rank[name] for rank in every) for name in found}


def leave(run: Run) -> None:
    run.sinks.finish("preempted")
    run.checkpointer.close()
    run.directory.release()


def main(argv: Sequence[str]) -> int:
    found = examine(argv)
    if int(os.environ["RANK"]) == 0:
        os.write(1, f"{json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)
