"""Side streams of a GPU for work that what follows does not wait for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

HERE: AbstractContextManager[Any] = nullcontext()


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

    def behind(self, index: int) -> AbstractContextManager[Any]:
        """On side stream `index`, after everything that was given to it and to those above it."""
        if not self.streams:
            return HERE
        for above in self.streams[index + 1 :]:
            self.streams[index].wait_stream(above)
        return torch.cuda.stream(self.streams[index])

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
