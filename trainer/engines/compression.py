"""Gradients that travel in fewer bits under DDP: casts, and PowerSGD's low-rank matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from configs.schema_execution import ParallelConfig
from data.loading.order import derive_seed
from trainer.engines.reduction import AllReduce
from trainer.ranks.precision import DTYPES

MEMORIES = ("error_dict", "p_memory_dict", "q_memory_dict")
"""What PowerSGD keeps of every bucket: what it left out, and its latest factors."""


class CastAllReduce(AllReduce):
    """DDP's all-reduce in another type, in which the additions are done too.

    torch's own hooks average, and refuse bfloat16 under gloo, which adds it well enough.
    """

    def __init__(self, ddp: DistributedDataParallel, dtype: torch.dtype) -> None:
        super().__init__(ddp, 1)
        _register(ddp, lambda _, bucket: _cast_and_sum(dtype, bucket))


class PowerSGD(AllReduce):
    """Two thin matrices instead of each gradient; what they miss is added to the next gradient.

    Vogels et al., PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization,
    arXiv:1905.13727. Vectors, and matrices too small to gain by it, travel as they are.
    """

    def __init__(
        self, ddp: DistributedDataParallel, world_size: int, config: ParallelConfig, seed: int
    ) -> None:
        super().__init__(ddp, world_size)  # the hook averages, as DDP does
        self._begin = partial(
            PowerSGDState,
            None,
            matrix_approximation_rank=config.powersgd_rank,
            start_powerSGD_iter=config.powersgd_start_step,
            orthogonalization_epsilon=1e-8,  # a gradient of zeros has no direction
            random_seed=derive_seed(seed, "powersgd") % 2**32,
        )
        self.memory = self._begin()
        _register(ddp, lambda _, bucket: powerSGD_hook(self.memory, bucket))

    def state_dict(self) -> dict[str, Any]:
        """Random numbers are only drawn for the first factors: they need no saving."""
        return {"iter": self.memory.iter} | {
            name: dict(getattr(self.memory, name)) for name in MEMORIES
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.memory = self._begin()
        self.memory.iter = state.get("iter", 0)
        for name in MEMORIES:
            saved = {index: part.to(device) for index, part in state.get(name, {}).items()}
            setattr(self.memory, name, saved)


def reduce_with_ddp(
    ddp: DistributedDataParallel, config: ParallelConfig, world_size: int, seed: int
) -> AllReduce:
    """The reduction that `parallel.compression` asks for; DDP's buckets must have settled."""
    if config.compression == "none":
        return AllReduce(ddp, world_size)
    if config.compression == "powersgd":
        return PowerSGD(ddp, world_size, config, seed)
    dtype = DTYPES[config.compression]
    assert dtype is not None
    return CastAllReduce(ddp, dtype)


def _register(
    ddp: DistributedDataParallel, hook: Callable[[object, GradBucket], Future[Tensor]]
) -> None:
    """DDP reads annotations and knows no postponed ones: a lambda has none."""
    ddp.register_comm_hook(None, hook)


def _cast_and_sum(dtype: torch.dtype, bucket: GradBucket) -> Future[Tensor]:
    """The bucket summed over ranks, when it is there."""
    gradients = bucket.buffer()
    work = dist.all_reduce(gradients.to(dtype), async_op=True)
    assert work is not None
    future = work.get_future()
    cast_back: Future[Tensor] = future.then(lambda done: gradients.copy_(done.value()[0]))
    return cast_back
