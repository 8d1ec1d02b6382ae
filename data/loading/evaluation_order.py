"""The batches of an evaluation, the same on any number of ranks."""

from __future__ import annotations


def evaluation_batches(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Bounds of the batches of an evaluation, none padded and none repeated.

    They do not depend on the number of ranks: rank r evaluates batches r, r + W, r + 2W, ..., so
    every batch has the same shape, and so the same bits, wherever it is computed.
    """
    return [(s, min(s + batch_size, num_samples)) for s in range(0, num_samples, batch_size)]
