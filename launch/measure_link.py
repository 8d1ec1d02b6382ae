"""Time all-reduce over the ranks of a launcher, message size by message size.

    torchrun --nproc_per_node=2 launch/measure_link.py --output link.json

On a cluster, start it with one rank on each of two nodes: what `launch/benchmark.py
--project-scaling` needs to know of a link is then measured on the link itself.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends what imports, without a traceback

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A script's own folder comes first on sys.path; its neighbours must not shadow other packages.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs.errors import InputError
from launch.entry import called, run_command
from trainer.checkpoints.atomic_files import write_output

SMALLEST_BYTES = 1 << 10


def main(argv: Sequence[str]) -> int:
    """Measure, and write one JSON file from rank 0."""
    parser = argparse.ArgumentParser(
        prog=called(__file__), description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the times")
    parser.add_argument("--largest-mb", type=float, default=64, help="largest message, in MiB")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args(argv)
    largest = int(arguments.largest_mb * 2**20)
    if largest < 2 * SMALLEST_BYTES:
        raise InputError("--largest-mb", given=arguments.largest_mb, expected="0.002 or more")

    import torch

    from configs.schema_execution import ParallelConfig
    from trainer.ranks.link import all_reduce_seconds
    from trainer.ranks.runtime import choose_device, detect, process_group

    runtime = detect(os.environ)
    if runtime.world_size < 2:
        raise InputError(
            "number of ranks",
            given=1,
            expected="2 or more",
            remedy="Start it with `torchrun --nproc_per_node=2 launch/measure_link.py ...`.",
        )
    config = ParallelConfig(device=arguments.device)
    runtime = choose_device(runtime, config)
    with process_group(runtime, config):
        times = [
            {"bytes": size, "seconds": all_reduce_seconds(runtime.device, size)}
            for size in sizes(largest)
        ]
    if runtime.is_main:
        result: dict[str, Any] = {
            "ranks": runtime.world_size,
            "backend": runtime.backend,
            "device": runtime.device.type,
            "threads": torch.get_num_threads(),
            "all_reduce": times,
        }
        write_output(arguments.output, json.dumps(result, indent=2) + "\n")
    return 0


def sizes(largest: int) -> list[int]:
    """Message sizes in bytes, each four times the one before."""
    found = [SMALLEST_BYTES]
    while found[-1] * 4 <= largest:
        found.append(found[-1] * 4)
    return found if len(found) > 1 else [*found, largest]


if __name__ == "__main__":
    run_command(main)
