"""Runs the model on its device: DDP or alone, compiled or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.errors import InputError
from configs.schema_execution import CompileConfig, ParallelConfig
from data.sampler import MicroBatch, Plan, Window
from trainer.reduction import AllReduce, PairwiseTree, Reduction, SingleRank
from trainer.runtime import Runtime


class Engine(Protocol):
    """What the step and the checkpoints need of whoever runs the model."""

    module: nn.Module
    """The raw module: its state dict has the keys the user wrote."""
    gradient_scale: float
    """Factor of the loss that undoes an average over ranks."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised inputs -> logits, in training mode."""
        ...

    def micro_batch(self, window: Window, micro: MicroBatch) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of one micro-batch."""
        ...

    def reduce(self) -> None:
        """After the last micro-batch: `.grad` holds the gradient of the whole global batch."""
        ...


class NativeEngine:
    """DDP with several ranks, the bare module with one, torch.compile underneath either."""

    def __init__(
        self,
        module: nn.Module,
        *,
        runtime: Runtime,
        parallel: ParallelConfig,
        compile_: CompileConfig,
        plan: Plan,
        input_shape: tuple[int, ...],
    ) -> None:
        self.module = module
        self.runtime = runtime
        # Every shape gets a graph of its own (there are at most four: full and short batches, and
        # the remainders of their micro-batches); a dynamic one would be slower for all of them.
        model: Callable[[Tensor], Tensor] = (
            torch.compile(module, dynamic=False, mode=compile_.mode)
            if should_compile(compile_, runtime.device)
            else module
        )
        reduction: Reduction = SingleRank()
        if parallel.reduction == "exact":
            reduction = PairwiseTree(module, runtime, shards=parallel.shards, seed=plan.seed)
        elif runtime.world_size > 1:
            assert isinstance(model, nn.Module)
            ddp = DistributedDataParallel(
                model,
                device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                static_graph=plan.micro_batches_per_step == 1,
                bucket_cap_mb=parallel.bucket_mb,
            )
            size = plan.window(0).micro_batches[0].size
            self._settle_buckets(ddp, torch.zeros(size, *input_shape, device=runtime.device))
            model, reduction = ddp, AllReduce(ddp, runtime.world_size)
        self.model = model
        self.reduction = reduction
        self.gradient_scale = reduction.gradient_scale

    def _settle_buckets(self, ddp: DistributedDataParallel, inputs: Tensor) -> None:
        """Two passes over zeros that leave no trace but DDP's final bucket layout.

        DDP lays its buckets out anew after the first backward pass (with a static graph the second
        one), and with three ranks or more the order of additions depends on the layout: without
        this the first steps after a restart would not have the bits of the same steps in an
        undisturbed run.
        """
        before = [buffer.clone() for buffer in self.module.buffers()]
        ddp.train()  # type: ignore[no-untyped-call]
        for _ in range(2):
            ddp(inputs).sum().backward()
        self.module.zero_grad(set_to_none=True)
        for buffer, value in zip(self.module.buffers(), before, strict=True):
            buffer.copy_(value)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def micro_batch(self, window: Window, micro: MicroBatch) -> AbstractContextManager[Any]:
        return self.reduction.micro_batch(window, micro)

    def reduce(self) -> None:
        self.reduction.finish()


def should_compile(config: CompileConfig, device: torch.device) -> bool:
    """Decide `compile.enabled: auto` (on a GPU), and check that compiling is possible.

    Raises:
        InputError: If it is asked for on a CPU without a C++ compiler.
    """
    enabled = device.type == "cuda" if config.enabled == "auto" else config.enabled
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if (
        enabled
        and device.type == "cpu"
        and not any(name and shutil.which(name) for name in compilers)
    ):
        raise InputError(
            "compile.enabled",
            given="true",
            expected="a C++ compiler (g++ or clang++) on the PATH",
            remedy="Install one, point CXX at one, or use --compile.enabled false.",
        )
    return enabled
