"""Passes recorded as CUDA graphs and replayed: one launch instead of one for every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.explicit import ExplicitPasses

Outputs = tuple[Tensor, Tensor]
Recorder = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]
"""Records a function: its outputs, and what computes them again into the same tensors."""

WARMUP_CALLS = 3


@dataclass(frozen=True, slots=True)
class _Recording:
    """One shape of batch: where its inputs go, what to call, where its results lie."""

    inputs: Tensor
    targets: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class CapturedPasses:
    """The written-out passes of a network, whose memory never moves, as graphs.

    A graph belongs to a shape of batch, a share, and whether the batch begins a sum. It is recorded
    when it is first needed; what the warm-up did to gradients and generator is undone, so a step
    after a restart has the bits of the same step in an undisturbed run. Random numbers go on from
    replay to replay (torch registers the generator with the graph).
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, passes: ExplicitPasses, record: Recorder) -> None:
        self.passes = passes
        self.size = passes.size
        self.record = record
        self.recordings: dict[object, _Recording] = {}

    def clear(self) -> None:
        self.passes.clear()

    def take(self, out: Tensor) -> None:
        self.passes.take(out)

    def put(self, flat: Tensor) -> None:
        self.passes.put(flat)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
        if not len(targets):
            return self.passes(inputs, targets, share)
        key = (inputs.shape, inputs.dtype, share, self.passes.fresh)
        found = self.recordings.get(key)
        if found is None:
            found = self.recordings[key] = self._record(inputs, targets, share)
        found.inputs.copy_(inputs)
        found.targets.copy_(targets)
        found.replay()
        self.passes.fresh = False
        loss, correct = found.outputs
        return loss.clone(), correct.clone()

    def _record(self, inputs: Tensor, targets: Tensor, share: float) -> _Recording:
        passes, fresh = self.passes, self.passes.fresh
        inputs, targets = inputs.clone(), targets.clone()
        gradients = passes.flat.gradients.clone()
        generator = _generator(inputs.device)
        state = generator.get_state()

        def call() -> Outputs:
            passes.fresh = fresh
            return passes(inputs, targets, share)

        outputs, replay = self.record(call)
        generator.set_state(state)
        passes.flat.gradients.copy_(gradients)
        passes.fresh = fresh
        return _Recording(inputs, targets, outputs, replay)


def record_graph(call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """A CUDA graph of a function, after some calls on a stream of their own."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph.replay


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
