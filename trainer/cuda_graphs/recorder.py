"""Work recorded as a CUDA graph and replayed: one launch instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Recorder(Protocol):
    """Records what a function does to tensors."""

    def eagerly(self, call: Callable[[], T]) -> T:
        """Call it as it will be recorded, so that every library it needs is warm."""
        ...

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Without executing it: its result, and what computes it again into the same tensors."""
        ...


class GraphRecorder:
    """CUDA graphs over one pool of memory, recorded on a stream of their own.

    Random numbers go on from replay to replay: torch registers the generator with the graph, and a
    replay takes as many numbers from it as the function would.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def eagerly(self, call: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = call()
        current.wait_stream(self.stream)
        return result

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.stream.device)
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool)  # torch.cuda.graph would collect garbage before
            try:
                result = call()
            except BaseException:
                with suppress(RuntimeError):  # it is invalid by now
                    graph.capture_end()
                raise
            graph.capture_end()
        return result, graph.replay
