"""Run by torchrun in tests: steps recorded on several ranks against steps executed, as JSON.

With `cuda` all ranks share a GPU, over gloo: everything of a recording but NCCL. Then a replay
fails on rank 1, which ends all ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

import trainer.cuda_graphs.recorded_steps as recorded_steps
from configs.schema_execution import ParallelConfig
from launch.entry import run_command
from tests.support.own_networks import Counting, Plain
from tests.support.recording import NOISY, Again, drive, everything, rows
from tests.support.rig import Rig, make
from trainer.cuda_graphs.recorded_steps import RecordedSteps
from trainer.ranks.collectives import gather_objects
from trainer.ranks.flight_record import status
from trainer.ranks.runtime import Runtime, detect, process_group

T = TypeVar("T")
CUTS = [1] * 16 + [6, 6, 2, 1]
WIDE: dict[str, Any] = {**NOISY, "hidden": (16, 8)}
RUNS: dict[str, dict[str, Any]] = {
    "whole": WIDE,
    "parts": WIDE,
    "parts in bf16": WIDE,
    "accumulated": {**WIDE, "micro": 3},
    "fp16": {**WIDE, "dtype": "fp16", "decay": 0.9, "init_scale": 1e9},
    "DDP": {**NOISY, "backward": "autograd", "clip": 0.1},
    "own": {"network": Plain, "optimizer": "adam"},
}
SLOW_SECONDS = 0.03


class Slow(Again):
    """Replays take rank 1 longer than the others."""

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        result, replay = super().record(call)

        def slow() -> None:
            if self.rig.step.runtime.rank == 1:
                time.sleep(SLOW_SECONDS)
            replay()

        return result, slow


class Noting(Again):
    """Notes how many collectives had begun when the latest replay was over."""

    begun = 0

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        result, replay = super().record(call)

        def noted() -> None:
            replay()
            self.begun = collectives()

        return result, noted


class Failing(Again):
    """A replay fails on rank 1."""

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        result, replay = super().record(call)

        def fails() -> None:
            if self.rig.step.runtime.rank == 1:
                raise RuntimeError("an illegal memory access was encountered")
            replay()

        return result, fails


class CountingOnOne(Plain):
    """Rank 1 cannot be recorded."""

    def __new__(cls) -> Any:
        return Counting() if detect(os.environ).rank == 1 else Plain()


def collectives() -> int:
    """How many this rank has begun."""
    (group,) = json.loads(status("gloo"))["pg_status"].values()
    return int(group["last_enqueued_collective"])


def digest(state: Any) -> str:
    """Of tensors and numbers, nested."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, dict):
            for key in value:
                add(value[key])
        elif isinstance(value, list):
            for item in value:
                add(item)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()[:12]


def rig(name: str, runtime: Runtime, **more: Any) -> Rig:
    torch.manual_seed(5)
    found = make(
        **(RUNS[name] | more),
        device=runtime.device,
        runtime=runtime,
        parallel=ParallelConfig(
            bucket_mb=25.0 if name == "whole" else 1e-5,
            compression="bf16" if name == "parts in bf16" else "none",
        ),
        recorded=True,
    )
    torch.manual_seed(7 + runtime.rank)
    return found


def trained(name: str, runtime: Runtime, *, recorded: bool) -> dict[str, Any]:
    warm = recorded_steps.WARMUP_STEPS
    recorded_steps.WARMUP_STEPS = warm if recorded else 1 << 30
    found = rig(name, runtime)
    steps = rows(found, most=50, recorder=Again(found), tried=name == "own")
    assert isinstance(steps, RecordedSteps)
    drive(found, steps, CUTS)
    recorded_steps.WARMUP_STEPS = warm
    return {
        "all": digest(everything(found)),
        "weights": digest(dict(found.module.state_dict())),
        "recordings": sorted(steps.recordings),
        "skipped": found.progress.skipped_steps,
    }


def pace(runtime: Runtime) -> list[int]:
    found = rig("whole", runtime)
    steps = rows(found, most=50, recorder=Slow(found))
    drive(found, steps, [1] * 8)
    return [steps.max_steps, int(recorded_steps.MAX_SECONDS / SLOW_SECONDS)]


def watched(runtime: Runtime) -> list[int]:
    found = rig("whole", runtime)
    recorder = Noting(found)
    drive(found, rows(found, most=50, recorder=recorder), [1] * 8)
    return [recorder.begun, collectives()]


def given_up(runtime: Runtime) -> Any:
    found = rig("own", runtime, network=CountingOnOne)
    steps = rows(found, most=50, recorder=Again(found), tried=True, required=False)
    drive(found, steps, CUTS)
    return steps.given_up  # type: ignore[attr-defined]


def main(argv: Sequence[str]) -> int:
    torch.set_num_threads(1)
    device = torch.device("cuda", 0) if argv == ["cuda"] else torch.device("cpu")
    runtime = replace(detect(os.environ), device=device, backend="gloo")  # type: ignore[type-var]
    with process_group(runtime, ParallelConfig()):
        mine = {
            "runs": {
                name: [trained(name, runtime, recorded=recorded) for recorded in (True, False)]
                for name in RUNS
            },
            "pace": pace(runtime),
            "watched": watched(runtime),
            "given up": given_up(runtime),
        }
        found = gather_objects(runtime, mine)
        if runtime.is_main:
            os.write(1, f"RECORDED {json.dumps(found)}\n".encode())
        failing = rig("whole", runtime)
        drive(failing, rows(failing, most=50, recorder=Failing(failing)), [1] * 8)
    return 0


if __name__ == "__main__":
    run_command(main)
