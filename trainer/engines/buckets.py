"""In which parts the gradient travels: chosen by what a message costs, where bits allow it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch.distributed as dist
from torch import Tensor

from configs.schema_execution import ParallelConfig
from trainer.ranks.link import measure_link, slowest
from trainer.ranks.runtime import Runtime

MIB = 1 << 20
DEFAULT_MIB = 25.0
"""Of DDP's buckets where nothing is measured, as torch has them."""
MOST_MIB = 100.0
MEASURED_MIB = 4
"""Of gradient that is sent to learn the bandwidth."""
WORTH = 0.97
"""What parts have to take at most of the time of the whole: less is noise."""


def is_free(parallel: ParallelConfig, runtime: Runtime) -> bool:
    """Whether the size of buckets is chosen here, by measuring.

    Two numbers have one sum. Three or more are added by gloo in an order that depends on where in
    a message they are: there the layout stays what it always was, and so do the bits. PowerSGD
    draws random numbers bucket by bucket. NCCL's order depends on it too, so that what was chosen
    is part of a checkpoint.
    """
    if parallel.bucket_mb != "auto" or parallel.compression == "powersgd":
        return False
    return runtime.world_size <= 2 or "nccl" in runtime.backend


def unmeasured(parallel: ParallelConfig) -> ParallelConfig:
    """With a size of buckets that is the same in every run, where bits may depend on it."""
    return replace(parallel, bucket_mb=ddp_mib(parallel))


def bucket_mib(parallel: ParallelConfig, runtime: Runtime, num_bytes: int) -> float:
    """Size of DDP's buckets in MiB; every rank calls it, and all get the same.

    Args:
        parallel: The size asked for, or auto.
        runtime: This rank.
        num_bytes: Of the whole gradient.
    """
    if not is_free(parallel, runtime):
        return ddp_mib(parallel)
    link = measure_link(runtime, min(num_bytes, MEASURED_MIB * MIB))
    return min(max(link.message_bytes / MIB, 1.0), MOST_MIB)


def ddp_mib(parallel: ParallelConfig) -> float:
    """Size of DDP's buckets in MiB where nothing is measured."""
    return DEFAULT_MIB if parallel.bucket_mb == "auto" else parallel.bucket_mb


def cut(sizes: Sequence[int], most: int) -> list[int]:
    """Layers with which parts of a gradient begin, from the last layer down to 0.

    Args:
        sizes: Bytes of the gradient of each layer.
        most: A part ends with the layer that brings it to so many bytes.
    """
    starts, filled = [], 0
    for index in range(len(sizes) - 1, 0, -1):
        filled += sizes[index]
        if filled >= most:
            starts.append(index)
            filled = 0
    return [*starts, 0]


def flat_parts(
    parallel: ParallelConfig,
    runtime: Runtime,
    *,
    gradients: Tensor,
    starts: Sequence[int],
    first_product: Callable[[], object],
) -> list[int]:
    """Layers with which parts of a flat gradient begin, the last one first; [0]: it is one part.

    Args:
        parallel: The size of parts asked for, or auto.
        runtime: This rank; every rank calls it, and all get the same.
        gradients: The flat gradient, zeros.
        starts: Where in it each layer begins.
        first_product: Computes the gradient of the first layer's weights, what parts above it
            could hide behind; of zeros, so that it leaves zeros.
    """
    sizes = [4 * (b - a) for a, b in itertools.pairwise([*starts, gradients.numel()])]
    if parallel.bucket_mb != "auto":
        return cut(sizes, int(parallel.bucket_mb * MIB))
    if len(sizes) == 1 or not is_free(parallel, runtime):
        return [0]
    if runtime.device.type != "cpu":
        link = measure_link(runtime, min(gradients.nbytes, MEASURED_MIB * MIB))
        return cut(sizes, link.message_bytes)
    # gloo's threads compute on the same cores: whether parts pay is tried and not worked out.
    upper, lower = gradients[starts[1] :], gradients[: starts[1]]

    def whole() -> None:
        first_product()
        dist.all_reduce(gradients)

    def parts() -> None:
        work = dist.all_reduce(upper, async_op=True)
        first_product()
        dist.all_reduce(lower)
        work.wait()

    together, apart = slowest(runtime, whole, parts)
    return [1, 0] if apart < WORTH * together else [0]
