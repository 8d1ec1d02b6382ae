"""DistributedDataParallel around a model, its buckets laid out for good before the first step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema_execution import ParallelConfig
from data.loading.order import Plan
from data.samples import Example
from trainer.ranks.runtime import Runtime


def distribute(
    model: nn.Module,
    module: nn.Module,
    *,
    runtime: Runtime,
    parallel: ParallelConfig,
    plan: Plan,
    example: Example,
) -> DistributedDataParallel:
    """The model within DDP, which averages gradients over ranks during the backward pass.

    Args:
        model: What is called: normalisation, the raw module and the loss, perhaps compiled.
        module: The raw module within it.
        runtime: This rank, within the process group.
        parallel: The size of the buckets.
        plan: Who trains on what.
        example: The first sample.
    """
    ddp = DistributedDataParallel(
        model,
        device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        static_graph=plan.micro_batches_per_step == 1,
        bucket_cap_mb=parallel.bucket_mb,
    )
    freeze_buckets(ddp, module, plan, example, runtime.device)
    return ddp


def freeze_buckets(
    ddp: DistributedDataParallel,
    module: nn.Module,
    plan: Plan,
    example: Example,
    device: torch.device,
) -> None:
    """Two passes over copies of a sample that leave no trace but DDP's final bucket layout.

    DDP lays its buckets out anew after the first backward pass (with a static graph the second
    one), and with three ranks or more the order of additions depends on the layout: without this
    the first steps after a restart would not have the bits of the same steps in an undisturbed run.
    """
    batch = example.batch(max(plan.global_batch(0).micro_batches[0].size, 1)).to(device)
    before = [buffer.clone() for buffer in module.buffers()]
    counted = {
        n: copy.deepcopy(v) for n, v in module.state_dict().items() if not isinstance(v, Tensor)
    }
    for _ in range(2):
        ddp(batch.inputs, batch.targets)[0].backward()
    module.zero_grad(set_to_none=True)
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)
    module.load_state_dict(counted, strict=False)
