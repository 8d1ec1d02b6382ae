"""Run by torchrun in tests: two ranks sum tensors in each other's memory, and part in some way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from configs.schema_execution import ParallelConfig
from launch.entry import run_command
from trainer.ranks.collectives import gather_objects
from trainer.ranks.neighbour import meet_neighbour
from trainer.ranks.runtime import choose_device, detect, process_group, use_training_timeout

SIZES = (1, 7, 1000, 100_003, 1000, 3)
LATE_SECONDS = (0.0, 0.0, 0.0005, 0.02)


def main(argv: Sequence[str]) -> int:
    (fate,) = argv
    config = ParallelConfig(device="cpu", timeout_seconds=1.0)
    runtime = choose_device(detect(os.environ), config)
    with process_group(runtime, config):
        neighbour = meet_neighbour(runtime, max(SIZES))
        if fate == "alone":
            found = gather_objects(runtime, neighbour is not None)
            if runtime.is_main:
                os.write(1, f"FOUND {json.dumps(found)}\n".encode())
            return 0
        assert neighbour is not None
        use_training_timeout(runtime, config)
        generator = torch.Generator().manual_seed(runtime.rank)
        equal = True
        for number in range(300):
            mine = torch.randn(SIZES[number % len(SIZES)], generator=generator)
            expected = mine.clone()
            dist.all_reduce(expected)
            if torch.rand(1, generator=generator) < 0.3:  # another rank each time
                time.sleep(LATE_SECONDS[number % len(LATE_SECONDS)])
            equal = equal and torch.equal(neighbour.sum_(mine), expected)
        for _ in range(300):  # one right behind the other
            equal = equal and torch.equal(neighbour.sum_(torch.ones(1000)), torch.full((1000,), 2))
        if runtime.is_main:
            os.write(1, f"EQUAL {json.dumps(equal)}\n".encode())
        if fate != "none" and not runtime.is_main:
            if fate == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fate == "silent":
                time.sleep(5)
            if fate == "elsewhere":
                neighbour.sum_(torch.ones(2))
        elif fate != "none":
            try:
                neighbour.sum_(torch.ones(3))
            except RuntimeError as error:
                os.write(1, f"SAID {json.dumps(str(error))}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)
