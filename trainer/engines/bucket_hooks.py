"""What becomes of DDP's buckets: they are summed in a neighbour's memory, or travel in fewer bits,
cast or as PowerSGD's factors (`parallel.compression`)."""

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
from trainer.ranks.neighbour import Neighbour
from trainer.ranks.precision import DTYPES

MEMORIES = ("error_dict", "p_memory_dict", "q_memory_dict")
"""What PowerSGD keeps of every bucket: the error of its approximation, and its latest factors."""


class NeighbourAllReduce(AllReduce):
    """DDP's all-reduce without a message; buckets come in the same order on both ranks."""

    def __init__(self, ddp: DistributedDataParallel, neighbour: Neighbour) -> None:
        super().__init__(ddp, 2)
        _register(ddp, lambda _, bucket: _average(neighbour, bucket))


class CastAllReduce(AllReduce):
    """DDP's all-reduce in another type: gradients travel and are added in it.

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
        """The errors and factors of this rank.

        Random numbers are drawn for the first factors only, so that the generator needs no saving.
        """
        return {"iter": self.memory.iter} | {
            name: dict(getattr(self.memory, name)) for name in MEMORIES
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue with the errors and factors of the same rank; anew from an empty state."""
        self.memory = self._begin()
        self.memory.iter = state.get("iter", 0)
        for name in MEMORIES:
            saved = {index: part.to(device) for index, part in state.get(name, {}).items()}
            setattr(self.memory, name, saved)


def reduce_with_ddp(
    ddp: DistributedDataParallel,
    config: ParallelConfig,
    world_size: int,
    seed: int,
    neighbour: Neighbour | None,
) -> AllReduce:
    """The reduction that `parallel.compression` asks for.

    Args:
        ddp: The wrapped model, which has rebuilt its buckets: they keep their sizes from now on.
        config: The compression, and the rank and first step of PowerSGD.
        world_size: Number of ranks.
        seed: The seed of the run.
        neighbour: In whose memory buckets can be summed as they are.
    """
    if neighbour is not None:
        return NeighbourAllReduce(ddp, neighbour)
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
    """Register a hook; it must be a lambda, because DDP cannot read postponed annotations."""
    ddp.register_comm_hook(None, hook)


def _average(neighbour: Neighbour, bucket: GradBucket) -> Future[Tensor]:
    """The mean over both ranks, with the bits of DDP's own, which divides before it sums."""
    done: Future[Tensor] = Future()
    done.set_result(neighbour.sum_(bucket.buffer().div_(2)))
    return done


def _cast_and_sum(dtype: torch.dtype, bucket: GradBucket) -> Future[Tensor]:
    """Sum a bucket over ranks in another type; the future holds the sum in its own type."""
    gradients = bucket.buffer()
    work = dist.all_reduce(gradients.to(dtype), async_op=True)
    assert work is not None
    future = work.get_future()
    cast_back: Future[Tensor] = future.then(lambda done: gradients.copy_(done.value()[0]))
    return cast_back
