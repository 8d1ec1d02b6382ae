"""What a CUDA graph leaves behind when it is let go of, and when it could not be recorded."""

from __future__ import annotations

import pytest
import torch

from trainer.cuda_graphs.recorder import GraphRecorder


@pytest.mark.gpu
def test_a_recording_that_is_forgotten_holds_no_graph(gpu: torch.device) -> None:
    """NCCL waits for the end of every graph with its collectives."""
    recorder = GraphRecorder(gpu)
    tensor = torch.zeros(3, device=gpu)
    recorder.eagerly(lambda: tensor.add_(1))
    _, replay = recorder.record(lambda: tensor.add_(1))
    replay()
    assert tensor.tolist() == [2.0, 2.0, 2.0]
    recorder.forget()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        replay()


@pytest.mark.gpu
def test_a_recording_that_fails_leaves_no_memory_behind(gpu: torch.device) -> None:
    """Law: what it took is free again, and so is later what another stream has used."""
    recorder, side = GraphRecorder(gpu), torch.cuda.Stream(gpu)  # type: ignore[no-untyped-call]

    def asking() -> float:
        return float(torch.ones(1 << 26, device=gpu).sum())

    recorder.eagerly(asking)
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved(gpu)
    with pytest.raises(RuntimeError):
        recorder.record(asking)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved(gpu) <= reserved + (1 << 22)
    held = torch.cuda.memory_allocated(gpu)
    used = torch.ones(1 << 20, device=gpu)
    used.record_stream(side)
    del used
    torch.cuda.synchronize(gpu)
    torch.ones(1, device=gpu)  # asks what other streams are done with
    assert torch.cuda.memory_allocated(gpu) == held
