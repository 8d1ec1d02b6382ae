"""Run by torchrun in tests: several runs one after the other, without starting anew each time.

Takes a JSON list of argument lists of launch/train.py. Of a run that is continued, it says as JSON
what the ranks hold right after loading that is not, bit for bit, in the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from configs.load import load_config
from launch.entry import run_command
from trainer.build import build
from trainer.checkpoints.checkpoint import load_checkpoint
from trainer.checkpoints.state import capture
from trainer.loop import Run
from trainer.loop import train as train_run
from trainer.ranks.runtime import Runtime, choose_device, detect, process_group
from trainer.ranks.stop_signals import StopRequest, stop_on_signals


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Paths of the leaves that are not the same."""
    if isinstance(ours, torch.Tensor):
        return [] if torch.equal(ours, theirs) else [name]
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return [f"{name}: {sorted(map(str, ours))}"]
        return [d for k in ours for d in differences(ours[k], theirs[k], f"{name}.{k}")]
    return [] if ours == theirs else [name]


def compare_with_checkpoint(parts: Run) -> list[str]:
    latest = parts.directory.checkpoints / "latest"
    weights, trainer = capture(parts.state)
    if not (parts.runtime.is_main and latest.exists()):
        return []
    saved_weights, saved = load_checkpoint(latest)
    keys = ("optimizer", "ema", "progress", "scaler")
    ours = {"weights": weights} | {key: trainer[key] for key in keys}
    theirs = {"weights": saved_weights} | {key: saved[key] for key in keys}
    for state in (ours, theirs):  # hyperparameters come from the config
        state["optimizer"] = state["optimizer"]["state"]
    return differences(ours, theirs)


def train(argv: Sequence[str], runtime: Runtime, stop: StopRequest) -> list[str]:
    parts = build(load_config(argv, prog="several", description=""), runtime, stop)
    found = compare_with_checkpoint(parts)
    status = train_run(parts)
    parts.sinks.finish(status)
    parts.checkpointer.close()
    return found


def main(argv: Sequence[str]) -> int:
    runs = json.loads(argv[0])
    config = load_config(runs[0], prog="several", description="")
    runtime = choose_device(detect(os.environ), config.parallel)
    with stop_on_signals() as stop, process_group(runtime, config.parallel):
        found = [train(run, runtime, stop) for run in runs]
    if runtime.is_main:
        os.write(1, f"DIFFERENCES {json.dumps(found)}\n".encode())
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
