"""Copies the next batch to the device while the current one is being computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from data.samples import Batch
from data.structures import tensors


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, on `device`, each copied one ahead on a side stream.

    Args:
        batches: Batches in host memory; pinned, or the copies are not asynchronous.
        device: Where they go. On a CPU they are handed through.
    """
    return _prefetch_cuda(batches, device) if device.type == "cuda" else batches


def _prefetch_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_next() -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(side):
            return batch.map(lambda tensor: tensor.to(device, non_blocking=True))

    upcoming = copy_next()
    while upcoming is not None:
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for part in tensors((upcoming.inputs, upcoming.targets)):
            # The memory belongs to the side stream's pool: without this the allocator could hand
            # it to the next copy while the current stream still reads it.
            part.record_stream(current)
        ready, upcoming = upcoming, copy_next()
        yield ready
