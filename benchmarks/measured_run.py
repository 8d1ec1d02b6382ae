"""One run of Convoy in this process, and a JSON line on what its steps cost.

    python benchmarks/measured_run.py --config mnist --train.max_steps 400

It takes the options of launch/train.py. A step's time is that of the second half of the run. With
--group as its first argument the one rank is in a process group all the same, and its steps have
the collectives of several ranks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure.run_times import compile_seconds, read_records, seconds_per_step
from configs.load import load_config
from configs.schema import RunConfig
from launch.entry import run_command

if TYPE_CHECKING:
    from trainer.loop import Run
    from trainer.ranks.runtime import Runtime


def main(argv: Sequence[str]) -> int:
    """Train, and print the line on rank 0."""
    from trainer.ranks.stop_signals import stop_on_signals
    from trainer.session import joined, train_to_end

    join, keys = (in_group, argv[1:]) if argv[:1] == ["--group"] else (joined, argv)
    config = load_config(keys, prog="benchmarks/measured_run.py", description="Measure a run.")
    with stop_on_signals() as stop, join(config) as runtime:
        run, status = train_to_end(config, runtime, stop)
        if runtime.is_main:
            print(json.dumps({"status": status, **describe(run)}), flush=True)
    return 0


@contextmanager
def in_group(config: RunConfig) -> Iterator[Runtime]:
    """This one rank, in a process group."""
    import torch.distributed as dist

    from trainer.ranks.runtime import choose_device, detect, use_device

    runtime = choose_device(detect(os.environ), config.parallel)
    use_device(runtime, config.parallel)
    on_gpu = runtime.device.type == "cuda"
    backend = "nccl" if on_gpu else "gloo"
    device = runtime.device if on_gpu else None
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    yield replace(runtime, backend=backend)
    dist.destroy_process_group()


def describe(run: Run) -> dict[str, Any]:
    """What a finished run cost and how it was executed.

    Returns:
        Plain values: seconds, bytes, and floating-point operations (matrix products, convolutions,
        attention) of a step on this rank. The memory is the device's, or this process's on a CPU.
    """
    import torch

    from trainer.components import build_components
    from trainer.profiling.flops import count_flops
    from trainer.ranks.drift import weight_digest
    from trainer.records.pace import peak_host_bytes

    runtime, path = run.runtime, run.directory.path
    on_gpu = runtime.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(runtime.device) if on_gpu else int(peak_host_bytes())
    records = [record for record in read_records(path) if "train/loss" in record]
    environment = json.loads((path / "environment.json").read_text())
    sizes = run.plan.global_batch(0).micro_batch_sizes
    # Operations are not counted on what was trained, which may be compiled or sharded.
    alone = build_components(run.config, replace(runtime, world_size=1, backend=""), run.data)
    return {
        "step_seconds": seconds_per_step(path, warmup_steps=records[-1]["step"] // 2),
        "samples_per_step": sum(sizes),
        "flops_per_step": count_flops(alone.model, alone.forward, [2]) * sum(sizes) // 2,
        "peak_memory_bytes": peak,
        "compile_seconds": round(compile_seconds(records), 3),
        "loss": records[-1]["train/loss"],
        "weights_digest": weight_digest(run.state.engine.module).tolist(),
        "backend": runtime.backend,
        "runs_as": {name: item["way"] for name, item in environment["execution"].items()},
    }


if __name__ == "__main__":
    run_command(main)
