"""Work recorded as a CUDA graph and replayed: one launch instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
HERE: AbstractContextManager[Any] = nullcontext()


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


class Branches:
    """Side streams for work that what follows does not wait for; in a graph they are branches.

    On a CPU everything happens in its turn.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        cuda = device.type == "cuda"
        self.device = device
        self.streams: list[Any] = [torch.cuda.Stream(device) for _ in range(count if cuda else 0)]  # type: ignore[no-untyped-call]

    def beside(self, index: int) -> AbstractContextManager[Any]:
        """On side stream `index`, after everything so far.

        Memory that is allocated inside must not be used outside.
        """
        if not self.streams:
            return HERE
        stream = self.streams[index]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        return torch.cuda.stream(stream)

    def mark(self) -> Any:
        """An event for `wait`: what the current stream was given so far is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Any) -> None:
        """Let the current stream wait for it; None: for nothing."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def join(self) -> None:
        """Wait for all of them."""
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)
