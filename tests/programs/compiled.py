"""Run by torchrun in tests: how often torch.compile compiles in each epoch, as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from torch._dynamo.utils import counters

from configs.load import load_config
from launch.entry import run_command
from trainer.build import build
from trainer.loop import train
from trainer.ranks.runtime import choose_device, detect, process_group
from trainer.ranks.stop_signals import stop_on_signals


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def main(argv: Sequence[str]) -> int:
    config = load_config(argv, prog="compiled", description="")
    runtime = choose_device(detect(os.environ), config.parallel)
    with stop_on_signals() as stop, process_group(runtime, config.parallel):
        run = build(config, runtime, stop)
        after: list[int] = []
        steps = run.steps

        class Counting:
            """Notes the number of graphs at the end of every epoch."""

            def __call__(self, global_batches, batches):  # type: ignore[no-untyped-def]
                steps(global_batches, batches)
                if global_batches[-1].ends_epoch:
                    after.append(graphs())

            def __getattr__(self, name: str) -> object:
                return getattr(steps, name)

        run.steps = Counting()  # type: ignore[assignment]
        train(run)
        run.sinks.finish("completed")
    os.write(1, f"GRAPHS {json.dumps(after)}\n".encode())  # in one piece: ranks share the pipe
    return 0


if __name__ == "__main__":
    run_command(main)  # leaves before gloo's threads can abort
