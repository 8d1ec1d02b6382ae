"""Work recorded as a CUDA graph and replayed: one launch instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import torch

from trainer.ranks.streams import aside, recording_stream

T = TypeVar("T")


class Recorder(Protocol):
    """Records what a function does to tensors."""

    def eagerly(self, call: Callable[[], T]) -> T:
        """Call it as it will be recorded, so that every library it needs is warm."""
        ...

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Without executing it: its result, and what computes it again into the same tensors.

        Raises:
            RuntimeError: If it cannot be recorded; nothing has been executed then.
        """
        ...

    def forget(self) -> None:
        """Let go of everything that was recorded; nothing of it can be replayed from then on."""
        ...


class GraphRecorder:
    """CUDA graphs over one pool of memory, recorded on a stream of their own.

    Random numbers go on from replay to replay: torch registers the generator with the graph, and a
    replay takes as many numbers from it as the function would.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    NCCL's collectives are recorded like kernels. The thread that watches over NCCL's work neither
    sees those (torch enqueues none while a stream is captured) nor spoils a recording, for which
    TORCH_NCCL_ASYNC_ERROR_HANDLING=0 was once needed: what it asks of earlier work is allowed in
    a recording that forbids only its own thread what a graph cannot hold.

    Args:
        device: The GPU.
        several: Whether ranks talk in what is recorded.
    """

    def __init__(self, device: torch.device, *, several: bool = False) -> None:
        self.device = device
        self.stream = recording_stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.forbids = "thread_local" if several else "global"
        self.graphs: list[torch.cuda.CUDAGraph] = []

    def eagerly(self, call: Callable[[], T]) -> T:
        with aside(self.device):
            return call()

    def record(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # what is cached cannot be given back while one records
        generator = torch.cuda.default_generators[self.stream.device_index]
        before = generator.clone_state()
        with torch.cuda.stream(self.stream):
            # torch.cuda.graph would collect garbage before.
            graph.capture_begin(pool=self.pool, capture_error_mode=self.forbids)
            try:
                result = call()
                graph.capture_end()
            except BaseException:
                with suppress(RuntimeError):  # it is invalid by now
                    graph.capture_end()
                with suppress(RuntimeError):  # unless that has done it
                    # A recording whose end fails goes on for the allocator: no memory that another
                    # stream has used would be free again, nor what the recording took.
                    torch._C._cuda_endAllocateToPool(self.stream.device_index, self.pool)
                    torch._C._cuda_releasePool(self.stream.device_index, self.pool)
                # Else it would go on as in a recording that has not ended.
                generator.graphsafe_set_state(before)
                raise
        self.graphs.append(graph)
        return result, graph.replay

    def forget(self) -> None:
        for graph in self.graphs:
            graph.reset()
        self.graphs.clear()
