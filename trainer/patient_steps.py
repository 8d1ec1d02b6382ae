"""How long ranks wait for each other in the steps of a compiled run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from configs.schema_execution import ParallelConfig
from data.loading.order import GlobalBatch
from data.samples import Batch
from trainer.backward.compile_watch import CompileWatch
from trainer.ranks.runtime import Runtime, use_starting_timeout, use_training_timeout
from trainer.steps import Steps


class PatientSteps:
    """Takes steps; a silent rank is given up on soon only where nobody has to compile.

    A rank that compiles is silent, with a cold cache for minutes, and the others with a warm one
    wait for it. So `parallel.init_timeout_seconds` is what counts in the first step of a global
    batch of some size, which brings new sizes of micro-batches to some ranks and not to others, and
    in every step in which this rank has to compile, from where it begins. It counts until the
    device is done with that step: all ranks have taken it then, and what is enqueued behind it
    would wait as long.
    """

    def __init__(
        self, steps: Steps, *, runtime: Runtime, parallel: ParallelConfig, watch: CompileWatch
    ) -> None:
        """
        Args:
            steps: Takes them.
            runtime: This rank among others.
            parallel: How long they wait.
            watch: Tells when this process compiles.
        """
        self.steps = steps
        self.max_steps = steps.max_steps
        self.runtime = runtime
        self.parallel = parallel
        self.sizes: set[int] = set()
        """Of the global batches that were trained on."""
        self.patient = False
        watch.on_start = self.be_patient

    def be_patient(self) -> None:
        """From now on, until the step is over."""
        if not self.patient:
            self.patient = True
            use_starting_timeout(self.runtime, self.parallel)

    def __call__(self, global_batches: Sequence[GlobalBatch], batches: Iterator[Batch]) -> None:
        size = global_batches[0].size
        if size not in self.sizes:
            self.be_patient()
        self.steps(global_batches, batches)
        self.sizes.add(size)
        if self.patient:
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize(self.runtime.device)
            self.patient = False
            use_training_timeout(self.runtime, self.parallel)

    def close(self) -> None:
        self.steps.close()
