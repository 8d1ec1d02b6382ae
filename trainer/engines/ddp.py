"""DistributedDataParallel around a model, its buckets laid out for good before the first step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema_execution import ParallelConfig
from data.loading.order import Plan
from data.samples import Example
from trainer.backward.autograd import arguments_of
from trainer.networks.module_state import untouched
from trainer.ranks.rng import capture_rng, restore_rng
from trainer.ranks.runtime import Runtime
from trainer.ranks.streams import aside

EXECUTED_BEFORE_RECORDING = 11
"""Backward passes after which DDP has stopped to look at its clock each time."""
NEVER = 2**31 - 1
"""Passes from which on it would look again."""


def distribute(
    model: nn.Module,
    module: nn.Module,
    *,
    runtime: Runtime,
    parallel: ParallelConfig,
    bucket_mib: float,
    plan: Plan,
    example: Example,
    recorded: bool = False,
) -> DistributedDataParallel:
    """The model within DDP, which averages gradients over ranks during the backward pass.

    To be recorded it has to be built on the stream of the recording, whose number autograd's
    accumulators keep; and must not look at its own clock, which waits for the device.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#usage-with-distributeddataparallel

    Args:
        model: What is called: normalisation, the raw module and the loss, perhaps compiled.
        module: The raw module within it.
        runtime: This rank, within the process group.
        parallel: What is known of the parameters that a step uses.
        bucket_mib: The size of the buckets.
        plan: Who trains on what.
        example: The first sample.
        recorded: Whether steps will be recorded as CUDA graphs.
    """
    cuda = runtime.device.type == "cuda"
    with aside(runtime.device) if recorded and cuda else nullcontext():
        ddp = DistributedDataParallel(
            model,
            device_ids=[runtime.device.index] if cuda else None,
            gradient_as_bucket_view=True,
            **graph_options(parallel, plan),
            bucket_cap_mb=bucket_mib,
        )
        if recorded:
            ddp._set_ddp_runtime_logging_sample_rate(NEVER)  # type: ignore[no-untyped-call]
        freeze_buckets(ddp, module, plan, example, runtime.device)
    return ddp


def graph_options(parallel: ParallelConfig, plan: Plan) -> dict[str, Any]:
    """What DDP is told of the passes to come: whether all of them use the same parameters."""
    if parallel.find_unused_parameters is True:
        return {"find_unused_parameters": True}
    return {"static_graph": plan.micro_batches_per_step == 1}


def freeze_buckets(
    ddp: DistributedDataParallel,
    module: nn.Module,
    plan: Plan,
    example: Example,
    device: torch.device,
) -> None:
    """Two passes over copies of a sample that leave no trace but DDP's final bucket layout: a run
    that goes on, or gives up recording, comes by here too.

    DDP lays its buckets out anew after the first backward pass (with a static graph the second
    one), and with three ranks or more the order of additions depends on the layout: without this
    the first steps after a restart would not have the bits of the same steps in an undisturbed run.
    (With `find_unused_parameters` DDP never lays them out anew.)
    """
    batch = example.batch(max(plan.global_batch(0).micro_batch_sizes[0], 1)).to(device)
    drawn = capture_rng(device)
    with untouched(module):
        for _ in range(2):
            ddp(*arguments_of(batch))[0].backward()
        module.zero_grad(set_to_none=True)
    restore_rng(drawn, device)
