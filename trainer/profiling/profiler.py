"""A profile of some warm steps: `--profile` writes a trace and one page that sums it up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from configs.schema_execution import ProfileConfig
from data.samples import Batch
from trainer.checkpoints.atomic_files import write_atomically
from trainer.checkpoints.state import Progress
from trainer.engines.dtensor import is_sharded
from trainer.profiling.events import DATA, REGION, STEP, break_down
from trainer.profiling.flops import Forward, count_flops, matmul_rate
from trainer.profiling.summary import Facts, markdown
from trainer.profiling.trace import read_trace
from trainer.ranks.link import wait_for
from trainer.ranks.precision import Precision
from trainer.ranks.runtime import Runtime
from trainer.records.stopwatch import Stopwatch


class Profiler(Protocol):
    """What the loop tells a profiler."""

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; waiting for one counts as data."""
        ...

    def step(self) -> AbstractContextManager[Any]:
        """Around the steps that the loop takes in a row."""
        ...

    def report(self, module: nn.Module, sizes: Sequence[int]) -> str | None:
        """After the run: write what was found, and return it as one page of Markdown.

        Args:
            module: The raw module that was trained.
            sizes: Samples in each of this rank's micro-batches of a full step.
        """
        ...


class NoProfiler:
    """Adds nothing to the loop but an empty context."""

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def step(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def report(self, module: nn.Module, sizes: Sequence[int]) -> str | None:
        return None


class TorchProfiler:
    """Records `config.steps` steps or more after `config.warmup_steps`, on rank 0.

    Steps that are taken in a row are recorded in a row: it begins and ends between two rows.

    Everything that computes (the rate of the device, the operations of a step) is done after the
    run, on copies: neither the weights nor a random generator notices.
    """

    def __init__(
        self,
        config: ProfileConfig,
        *,
        folder: Path,
        runtime: Runtime,
        precision: Precision,
        progress: Progress,
        watch: Stopwatch,
        runs_as: str,
        forward: Forward,
    ) -> None:
        self.folder = folder
        self.forward = forward
        self.runs_as = runs_as
        self.runtime = runtime
        self.precision = precision
        self.progress = progress
        self.watch = watch
        self.steps = config.steps
        self.start = progress.global_batches + config.warmup_steps
        # The second half of the warm-up is timed, without the profiler's own cost.
        self.timed_from = progress.global_batches + config.warmup_steps // 2
        self.timed: list[tuple[int, float]] = []
        self.profile: profile | None = None
        self.recording = False
        self.global_batches = (0, 0)

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            with record_function(REGION + DATA) if self.recording else nullcontext():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def step(self) -> Iterator[None]:
        global_batch = self.progress.global_batches
        if global_batch >= self.timed_from and not self.timed:
            self._time(global_batch)
        if global_batch >= self.start and self.profile is None:
            self._time(global_batch)
            self._begin(global_batch)
        with record_function(f"{STEP}{global_batch}") if self.recording else nullcontext():
            yield
            if (
                self.recording
                and self.progress.global_batches >= self.global_batches[0] + self.steps
            ):
                wait_for(self.runtime.device)  # work still queued belongs to the last step
        if self.recording and self.progress.global_batches >= self.global_batches[0] + self.steps:
            self._end()

    def report(self, module: nn.Module, sizes: Sequence[int]) -> str | None:
        if self.recording:
            self._end()
        if self.profile is None:
            return (
                f"Nothing was profiled: the run ended at step {self.progress.step}, before the "
                "warm-up of profile.warmup_steps did."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / "trace.json.gz"
        unfinished = self.folder / ".new.trace.json.gz"
        self.profile.export_chrome_trace(str(unfinished))
        unfinished.replace(trace)
        dtype = self.precision.dtype or torch.float32
        sharded = any(map(is_sharded, module.parameters()))
        flops = None if sharded else count_flops(module, self.forward, sizes)
        text = markdown(
            break_down(read_trace(trace)),
            Facts(
                runs_as=self.runs_as,
                global_batches=self.global_batches,
                rank=self.runtime.rank,
                world_size=self.runtime.world_size,
                device=_device_name(self.runtime.device),
                dtype=str(dtype).removeprefix("torch."),
                plain_step_seconds=self._plain_step_seconds(),
                step_flops=flops,
                peak_flops_per_second=matmul_rate(self.runtime.device, dtype),
            ),
        )
        write_atomically(self.folder / "summary.md", text)
        return text

    def _time(self, global_batch: int) -> None:
        wait_for(self.runtime.device)
        self.timed.append((global_batch, self.watch.total_seconds))

    def _begin(self, global_batch: int) -> None:
        activities = [ProfilerActivity.CPU]
        if self.runtime.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profile = profile(activities=activities)
        self.profile.start()
        self.recording = True
        self.global_batches = (global_batch, global_batch)

    def _end(self) -> None:
        assert self.profile is not None
        self.profile.stop()
        self.recording = False
        self.global_batches = (self.global_batches[0], self.progress.global_batches)

    def _plain_step_seconds(self) -> float | None:
        """By the run's own stopwatch, before the profiler began; None without a warm-up."""
        if len(self.timed) < 2 or self.timed[1][0] == self.timed[0][0]:
            return None
        (first, since), (last, until) = self.timed
        return (until - since) / (last - first)


def build_profiler(
    config: ProfileConfig,
    *,
    folder: Path,
    runtime: Runtime,
    precision: Precision,
    progress: Progress,
    watch: Stopwatch,
    runs_as: str,
    forward: Forward,
) -> Profiler:
    """A profiler on rank 0 of a run that asks for one, and none anywhere else.

    Args:
        config: How many steps to profile, and after how many others.
        folder: Where the trace and the page go.
        runtime: This rank.
        precision: In which type matrices are multiplied.
        progress: How far the run has come.
        watch: The run's own stopwatch.
        runs_as: How the run is executed, in a line.
        forward: A pass, for its operations to be counted.
    """
    if not (config.enabled and runtime.is_main):
        return NoProfiler()
    return TorchProfiler(
        config,
        folder=folder,
        runtime=runtime,
        precision=precision,
        progress=progress,
        watch=watch,
        runs_as=runs_as,
        forward=forward,
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
