"""launch/train.py, with a fault at a moment: DIES says when rank 1 is killed in its start, PAUSES
when it waits for a while, HANGS that loading the data takes for ever, KILLED_SAVING that the first
save is its end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from launch.entry import rank, run_command
from launch.train import main
from trainer.checkpoints.saver import Saver
from trainer.ranks import load_data, runtime


def die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(*_: Any, **__: Any) -> Any:
    print("loading", flush=True)
    time.sleep(600)


def after_a_pause(call: Callable[..., Any]) -> Callable[..., Any]:
    def paused(*arguments: Any, **keywords: Any) -> Any:
        print("pausing", flush=True)
        time.sleep(3)
        return call(*arguments, **keywords)

    return paused


if __name__ == "__main__":
    moment = os.environ.get("DIES") if rank() == 1 else None
    if moment == "before it meets the others":
        time.sleep(2)
        runtime.meet = die
    elif moment == "while it connects":
        dist.init_process_group = die
    moment = os.environ.get("PAUSES") if rank() == 1 else None
    if moment == "before it meets the others":
        runtime.meet = after_a_pause(runtime.meet)
    elif moment == "while it connects":
        dist.init_process_group = after_a_pause(dist.init_process_group)
    if "HANGS" in os.environ:
        load_data.load_datasets = hang
    if "KILLED_SAVING" in os.environ:
        Saver.submit = die
    run_command(main)
