"""Floating-point operations: how many a step takes, and a device does in a second."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
MATMUL_SECONDS = 0.3
Forward = Callable[[nn.Module, int], Tensor]
"""A copy of the module and a number of samples -> a scalar that depends on all outputs."""


def count_flops(module: nn.Module, forward: Forward, sizes: Sequence[int]) -> int:
    """Floating-point operations of the forward and backward passes of one step on one rank.

    Counted by `torch.utils.flop_counter` on a copy of the module, eagerly: matrix
    products, convolutions and attention, two operations for each multiply-add. Elementwise work
    and the optimizer are left out, as is usual for model FLOP utilisation (Chowdhery et al.,
    arXiv:2204.02311, appendix B).
    """
    from torch.utils.flop_counter import FlopCounterMode

    replica = copy.deepcopy(module)
    total = 0
    for size in set(sizes) - {0}:
        with FlopCounterMode(display=False) as counter:
            forward(replica, size).backward()  # type: ignore[no-untyped-call]
        total += int(counter.get_total_flops()) * list(sizes).count(size)
    return total


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square matrix product, the best of some: this device's peak."""
    size = MATMUL_SIZE[device.type]
    left = torch.ones(size, size, dtype=dtype, device=device)
    right = torch.ones(size, size, dtype=dtype, device=device)
    float((left @ right)[0, 0])  # loads the library, and wakes the threads
    best, spent = float("inf"), 0.0
    while spent < MATMUL_SECONDS:
        begun = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        seconds = time.perf_counter() - begun
        best, spent = min(best, seconds), spent + seconds
    return 2 * size**3 / best
