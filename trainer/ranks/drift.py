"""Whether all ranks still hold the same weights: their digests, compared."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from trainer.ranks.collectives import sum_
from trainer.ranks.failures import Drifted
from trainer.ranks.runtime import Runtime

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def weight_digest(module: nn.Module) -> torch.Tensor:
    """Two 64-bit sums over the bits of all parameters, int64 `(2,)`, computed on their device.

    Any difference in a single bit changes the first sum. The second sum weighs each value by its
    position, so that two values that changed places are seen too.
    """
    total = None
    for parameter in module.parameters():
        held = parameter.detach()
        held = held.to_local() if hasattr(held, "to_local") else held  # of a DTensor
        bits = held.reshape(-1).view(INTEGERS[held.itemsize]).to(torch.int64)
        place = torch.arange(1, bits.numel() + 1, device=bits.device) * 0x9E3779B1
        part = torch.stack([bits.sum(), (bits * place).sum()])
        # Times an odd number first: the sum depends on the order of the parameters.
        total = part if total is None else total * 31 + part
    assert total is not None
    return total


def check_drift(module: nn.Module, runtime: Runtime, step: int) -> None:
    """Compare the digests of all ranks; one small all-reduce.

    Raises:
        Drifted: On every rank, naming those that differ from the majority (from rank 0 in a tie).
    """
    rows = torch.zeros(runtime.world_size, 2, dtype=torch.int64, device=runtime.device)
    rows[runtime.rank] = weight_digest(module)
    digests = [tuple(row) for row in sum_(runtime, rows).tolist()]
    counts = Counter(digests)
    agreed = max(counts, key=lambda digest: (counts[digest], digest == digests[0]))
    drifted = [rank for rank, digest in enumerate(digests) if digest != agreed]
    if drifted:
        raise Drifted(
            f"at step {step} the weights of rank {', '.join(map(str, drifted))} differ from the "
            "others'. Continue from the last checkpoint; if it happens again, suspect the hardware "
            "of that rank, or a model that changes its own weights"
        )
