"""A profiler counts steps, takes no part in them, and is nothing where nobody asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.schema_execution import ProfileConfig
from configs.schema_training import PrecisionConfig
from data.samples import Batch
from trainer.checkpoints.state import Progress
from trainer.profiling.events import DATA, break_down
from trainer.profiling.flops import count_flops
from trainer.profiling.profiler import NoProfiler, Profiler, TorchProfiler, build_profiler
from trainer.profiling.trace import read_trace
from trainer.ranks.precision import build_precision
from trainer.ranks.runtime import Runtime
from trainer.records.stopwatch import Stopwatch

CPU = torch.device("cpu")


def make(folder: Path, progress: Progress, *, enabled: bool = True, rank: int = 0) -> Profiler:
    return build_profiler(
        ProfileConfig(enabled=enabled, warmup_steps=4, steps=3),
        folder=folder,
        runtime=Runtime(launcher="python", rank=rank, world_size=2),
        precision=build_precision(PrecisionConfig(), CPU),
        progress=progress,
        watch=Stopwatch(),
        runs_as="runs as: itself",
        forward=forward,
    )


def forward(module: nn.Module, size: int) -> Tensor:
    total: Tensor = module(torch.zeros(size, 5)).sum()
    return total


def batches() -> Iterator[Batch]:
    while True:
        yield Batch(torch.ones(2, 5), torch.zeros(2, dtype=torch.int64), 2)


def drive(profiler: Profiler, progress: Progress, steps: int, row: int = 1) -> None:
    """A loop that takes batches and counts, some in a row."""
    stream = profiler.batches(batches())
    for _ in range(0, steps, row):
        with profiler.step():
            for _ in range(row):
                inputs = next(stream).inputs
                inputs.sum()
                progress.global_batches += 1


def test_the_steps_after_the_warm_up_are_recorded(tmp_path: Path) -> None:
    """Steps 5, 6 and 7 of a run that begins at 100; data is what the batches took."""
    progress = Progress(global_batches=100)
    profiler = make(tmp_path / "profile", progress)
    drive(profiler, progress, 10)
    page = profiler.report(nn.Linear(5, 3), [2])
    assert page is not None
    assert page.startswith("# Profile\n\nRuns as: itself.")
    assert "Steps 105 to 107 of the run" in page
    found = break_down(read_trace(tmp_path / "profile/trace.json.gz"))
    assert found.seconds[DATA] > 0
    assert (tmp_path / "profile/summary.md").read_text() == page


def test_rows_of_steps_are_recorded_whole(tmp_path: Path) -> None:
    """Rows of three end at 3, 6 and 9: the first after four warm steps begins with step 7."""
    progress = Progress()
    profiler = make(tmp_path / "profile", progress)
    drive(profiler, progress, 12, row=3)
    page = profiler.report(nn.Linear(5, 3), [2])
    assert page is not None
    assert "Steps 7 to 9 of the run" in page


def test_a_run_that_ends_among_its_profiled_steps_reports_those(tmp_path: Path) -> None:
    progress = Progress()
    profiler = make(tmp_path / "profile", progress)
    drive(profiler, progress, 5)
    page = profiler.report(nn.Linear(5, 3), [2])
    assert page is not None
    assert "Steps 5 to 5 of the run" in page


def test_a_run_that_ends_before_its_warm_up_says_so(tmp_path: Path) -> None:
    progress = Progress()
    profiler = make(tmp_path / "profile", progress)
    drive(profiler, progress, 4)
    page = profiler.report(nn.Linear(5, 3), [2])
    assert page is not None
    assert page.startswith("Nothing was profiled: the run ended at step")
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(("enabled", "rank"), [(False, 0), (True, 1)])
def test_without_being_asked_and_on_other_ranks_it_is_nothing(
    tmp_path: Path, enabled: bool, rank: int
) -> None:
    """Law: the batches pass untouched, and nothing is reported."""
    profiler = make(tmp_path, Progress(), enabled=enabled, rank=rank)
    assert isinstance(profiler, NoProfiler)
    stream = batches()
    assert profiler.batches(stream) is stream
    assert profiler.report(nn.Linear(5, 3), [2]) is None
    assert isinstance(make(tmp_path, Progress()), TorchProfiler)


def test_flops_are_counted_on_a_copy() -> None:
    """Law: 2 a multiply-add, forward and weight gradient; neither weights, gradients, buffers nor
    random numbers move."""
    module = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flops = count_flops(module, forward, [4, 4, 2])
    assert flops == 10 * (4 * 5 * 7 + 6 * 7 * 3)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in module.parameters())
