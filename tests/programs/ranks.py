"""Run by torchrun in tests: checks of the cluster with one rank at fault, as JSON."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence

import torch

from configs.schema_execution import ParallelConfig
from launch.diagnosis.check_cluster import check_agreement, check_network
from launch.diagnosis.check_pace import check_all_reduce, check_stragglers, matmul_seconds
from launch.entry import run_command
from trainer.ranks.collectives import sum_
from trainer.ranks.runtime import Runtime, choose_device, detect, process_group


def bad_link(runtime: Runtime, tensor: torch.Tensor) -> torch.Tensor:
    """A real all-reduce, after which rank 1 has one wrong entry."""
    summed = sum_(runtime, tensor)
    if runtime.rank == 1:
        summed[777] += 1
    return summed


def slow_work(device: torch.device) -> float:
    began = time.perf_counter()
    matmul_seconds(device)
    if os.environ["RANK"] == "1":
        time.sleep(0.5)
    return time.perf_counter() - began


def main(_: Sequence[str]) -> int:
    parallel = ParallelConfig(device="cpu")
    runtime = choose_device(detect(os.environ), parallel)
    planted = {"RANK 1": "x"} if runtime.rank else {"RANK 1": "y"}
    with process_group(runtime, parallel):
        closed = dict(os.environ) | {"MASTER_PORT": "1"} if runtime.rank else dict(os.environ)
        found = {
            "good link": check_all_reduce(runtime),
            "bad link": check_all_reduce(runtime, bad_link),
            "slow": check_stragglers(runtime, slow_work),
            "different": check_agreement(runtime, "same", {"seed": "1"} | planted),
            "closed port": check_network(runtime, closed)[0],
            "wrong interface": check_network(
                runtime, dict(os.environ) | {"GLOO_SOCKET_IFNAME": "nothing0"}
            )[-1],
        }
    if runtime.is_main:
        result = {name: [finding.level, finding.seen] for name, finding in found.items()}
        os.write(1, f"RANKS {json.dumps(result)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
