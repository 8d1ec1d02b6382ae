"""Model FLOP utilisation of a run, on GPUs whose peak is published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from configs.errors import first_line
from trainer.engines.dtensor import is_sharded
from trainer.profiling.flops import Forward, count_flops
from trainer.ranks.precision import Precision
from trainer.ranks.rng import capture_rng, restore_rng

log = logging.getLogger("convoy")
PEAKS = {
    r"\bB200": (80, 1125, 2250),
    r"H[12]00 NVL": (60, 417.5, 835),
    r"H200|H100 80GB HBM3|GH200": (67, 494.7, 989.4),
    r"H100 PCIe": (51, 378, 756),
    r"A100": (19.5, 156, 312),
    r"L40S": (91.6, 183, 362),
    r"L4\b": (30.3, 60, 121),
    r"A10\b": (31.2, 62.5, 125),
    r"V100-SXM": (15.7, 15.7, 125),
    r"T4\b": (8.1, 8.1, 65),
    r"RTX 4090$": (82.6, 82.6, 165.2),
    r"RTX 3090$": (35.6, 35.6, 71),
}
"""TFLOP/s of dense matrix products by the vendor's data sheets: float32, TF32, and 16 bits, by what
is in the name of the card."""


def peak_rate(name: str, dtype: torch.dtype | None, matmul: str) -> float | None:
    """Operations per second at most; None for a card that is not listed.

    Args:
        name: Of the card, as torch gives it.
        dtype: That autocast chooses; None: float32.
        matmul: How float32 matrices are multiplied: highest, or high or medium as TF32.
    """
    row = next((row for words, row in PEAKS.items() if re.search(words, name)), None)
    if row is None:
        return None
    column = 2 if dtype is not None else 0 if matmul == "highest" else 1
    return row[column] * 1e12


@dataclass(slots=True)
class Utilisation:
    """Counts the operations of a step when it is asked first, on tensors that hold nothing."""

    peak: float | None
    """Operations per second of a rank at most; None: no utilisation is known."""
    count: Callable[[], int | None]
    """The operations of this rank's step of `samples`."""
    samples: int
    flops: int | None = field(default=None, init=False)

    def of(self, samples_per_second: float) -> float | None:
        """The part of its peak that this rank has used, with this many samples of its own."""
        if self.peak is None:
            return None
        if self.flops is None:
            self.flops = self.count()
            if self.flops is None:
                self.peak = None
                return None
        return self.flops / self.samples * samples_per_second / self.peak


def build_utilisation(
    module: nn.Module,
    forward: Forward,
    sizes: Sequence[int],
    precision: Precision,
    device: torch.device,
) -> Utilisation:
    """Of the forward and backward passes of steps with these micro-batches."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_rate(name, precision.dtype, torch.get_float32_matmul_precision())
    return Utilisation(peak, lambda: count_without_computing(module, forward, sizes), sum(sizes))


def count_without_computing(
    module: nn.Module, forward: Forward, sizes: Sequence[int]
) -> int | None:
    """Operations of a step; None, and a line in the log, for what cannot be traced."""
    if any(map(is_sharded, module.parameters())):
        return None
    from torch._subclasses.fake_tensor import FakeTensorMode

    device = next(module.parameters()).device
    drawn = capture_rng(device)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return count_flops(module, forward, sizes)
    except Exception as error:  # whatever a model does with tensors that hold nothing
        reason = first_line(error)
        log.info("no model FLOP utilisation: its operations could not be counted (%s)", reason)
        return None
    finally:
        restore_rng(drawn, device)
