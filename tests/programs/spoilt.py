"""Run by torchrun in tests: runs one after the other, each with a NaN somewhere or without.

Takes a JSON list of [arguments of launch/train.py, place, step]; a place of null plants nothing.
Says as JSON how each run failed; nothing of one that did not. What it left is copied to
"NAME failed".
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from configs.load import load_config
from launch.entry import run_command
from tests.support.planting import planted
from trainer.ranks.failures import Diverged
from trainer.ranks.runtime import Runtime, choose_device, detect, process_group
from trainer.ranks.stop_signals import StopRequest, stop_on_signals
from trainer.session import train_to_end


def attempt(
    argv: Sequence[str], place: str | None, at: int, runtime: Runtime, stop: StopRequest
) -> str:
    config = load_config(argv, prog="spoilt", description="")
    with planted(place, at) if place else nullcontext():
        try:
            train_to_end(config, runtime, stop)
        except Diverged as error:
            if runtime.is_main:
                folder = Path(config.output_dir) / config.name
                shutil.copytree(folder, f"{folder} failed", symlinks=True)
            return str(error)
    return ""


def main(argv: Sequence[str]) -> int:
    runs = json.loads(argv[0])
    config = load_config(runs[0][0], prog="spoilt", description="")
    runtime = choose_device(detect(os.environ), config.parallel)
    with stop_on_signals() as stop, process_group(runtime, config.parallel):
        found = [attempt(*run, runtime, stop) for run in runs]
    if runtime.is_main:
        os.write(1, f"FAILURES {json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
