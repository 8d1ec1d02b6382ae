"""Run by torchrun in tests: where each rank has its data, if rank 1 has hardly any memory free."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import torch

import trainer.components
import trainer.ranks.load_data
from configs.load import load_config
from launch.entry import run_command
from trainer.build import assemble
from trainer.ranks.collectives import gather_objects
from trainer.session import joined


def free_bytes(device: torch.device) -> int:
    return 1 if os.environ["RANK"] == "1" else 1 << 40


def main(argv: Sequence[str]) -> int:
    for module in (trainer.components, trainer.ranks.load_data):
        module.free_bytes = free_bytes  # type: ignore[attr-defined]
    config = load_config(argv, prog="placed", description="")
    with joined(config) as runtime:
        found = gather_objects(runtime, type(assemble(config, runtime).loader).__name__)
        if runtime.is_main:
            os.write(1, f"PLACED {json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
