"""Run by torchrun in tests: how long groups of ranks wait for one that is late, as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from configs.schema_execution import ParallelConfig
from launch.entry import run_command
from trainer.engines.sharding import build_mesh
from trainer.ranks.collectives import barrier
from trainer.ranks.runtime import (
    choose_device,
    detect,
    process_group,
    use_starting_timeout,
    use_training_timeout,
)

LATE, SHORT, LONG = 2.5, 1.0, 60.0
"""Seconds that the last rank is late, and that the others wait in training and at the start."""


def waits(group: dist.ProcessGroup) -> bool:
    """Whether the ranks of a group meet, though the last rank is late."""
    if os.environ["RANK"] == "3":
        time.sleep(LATE)
    try:
        dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError:
        return False
    return True


def main(_: Sequence[str]) -> int:
    parallel = ParallelConfig(
        device="cpu",
        strategy="fsdp",
        shard_size=2,
        timeout_seconds=SHORT,
        init_timeout_seconds=LONG,
    )
    runtime = choose_device(detect(os.environ), parallel)
    found: dict[str, bool] = {}
    with process_group(runtime, parallel):
        use_training_timeout(runtime, parallel)
        copies, parts = build_mesh(runtime, parallel).get_all_groups()
        use_starting_timeout(runtime, parallel)  # as where a rank compiles
        found["start"] = waits(copies) and waits(parts)
        barrier(runtime)
        use_training_timeout(runtime, parallel)
        found["training"] = waits(parts)
    os.write(1, f"RANK {runtime.rank} {json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
