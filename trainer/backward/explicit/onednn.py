"""Large products by oneDNN, on processors where that is faster than MKL."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

LARGE = 1 << 22
"""Multiplications from which on a product is worth the memory that oneDNN allocates for it."""
LARGE_WEIGHT = 1 << 16
"""Elements of a matrix with which batches of 64 are as large as that."""


@functools.cache
def prefers_onednn() -> bool:
    """Whether large products go to oneDNN on this machine."""
    try:
        known = multiplies_faster(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return False
    has_onednn = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return known and bool(torch._C.has_mkl) and has_onednn


def multiplies_faster(cpuinfo: str) -> bool:
    """Whether oneDNN is faster than MKL on a processor of which Linux says this.

    MKL gives AMD's processors its kernels for AVX2. With AVX-512 oneDNN has better ones: on two
    cores of an EPYC the product of the first layer of the MNIST network takes 70 µs instead of 139,
    and its weight gradient 86 instead of 124. Without (Zen 3) it has not: 264 µs where MKL takes
    219 to 234. A fact of the processor, not a measurement: the last bits depend on who multiplies.
    """
    return "AuthenticAMD" in cpuinfo and "avx512f" in cpuinfo


def keeps_upright(parameter: nn.Parameter) -> bool:
    """Whether its gradient comes as `(out, in)`, and is best kept like that."""
    large = parameter.numel() >= LARGE_WEIGHT
    return large and parameter.device.type == "cpu" and prefers_onednn()


def multiply(
    left: Tensor, right: Tensor, bias: Tensor | None = None, *, relu: bool = False
) -> Tensor:
    """`left @ right.T + bias`, perhaps through a ReLU: `(M, K)`, `(N, K)`, `(N,)` -> `(M, N)`."""
    operator = torch.ops.mkldnn._linear_pointwise
    found: Tensor = operator(left, right, bias, "relu" if relu else "none", [], "")
    return found
