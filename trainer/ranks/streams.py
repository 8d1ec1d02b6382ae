"""The stream of a GPU on which a run is recorded, and what leads to it and back."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@functools.cache
def recording_stream(device: torch.device) -> Any:
    """The one stream of a device on which steps are recorded: a graph cannot be recorded on the
    default stream, and whatever autograd and DDP remember of a stream must be of this one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """On the recording stream, after everything so far; what follows waits for it."""
    stream, current = recording_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
