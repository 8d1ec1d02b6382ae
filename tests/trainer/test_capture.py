"""Recorded passes are the passes: on a GPU as CUDA graphs, here with a recorder of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from data.datasets import ArrayDataset, Datasets, Normalize
from trainer.capture import CapturedPasses, Outputs, record_graph
from trainer.explicit import ExplicitPasses, describe
from trainer.flat import FlatParameters
from trainer.models import MLP

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def generator_is_put_back() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


class Recorder:
    """What a CUDA graph does, by calling again: the same addresses in, the same addresses out."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, call: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        self.recorded += 1
        for _ in range(3):
            call()
        outputs = call()

        def replay() -> None:
            with torch.inference_mode():  # they were made in it
                for mine, new in zip(outputs, call(), strict=True):
                    mine.copy_(new)

        return outputs, replay


def passes_of(module: nn.Module, device: torch.device = CPU) -> ExplicitPasses:
    data = ArrayDataset(torch.zeros(1, 1, 3, 4, dtype=torch.uint8), torch.zeros(1).long())
    facts = Datasets(
        train=data,
        test=data,
        input_shape=(1, 3, 4),
        num_classes=5,
        mean=(0.3,),
        std=(0.4,),
        scale=255.0,
    )
    shapes = describe(module)
    assert shapes is not None
    flat = FlatParameters([p for shape in shapes for p in shape.linear.parameters()])
    return ExplicitPasses(shapes, flat, normalize=Normalize(facts, device), label_smoothing=0.1)


def taken(passes: ExplicitPasses | CapturedPasses) -> Tensor:
    out = torch.empty(
        passes.size,
        device=(
            passes if isinstance(passes, ExplicitPasses) else passes.passes
        ).flat.gradients.device,
    )
    passes.take(out)
    return out


def batch(size: int, seed: int, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (size, 1, 3, 4), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 5, (size,), generator=generator)
    return inputs.to(device), targets.to(device)


def drive(passes: ExplicitPasses | CapturedPasses, device: torch.device = CPU) -> list[Tensor]:
    """Three global batches, the second in two parts, the last one short: everything they give."""
    torch.manual_seed(4)
    found = []
    flat = passes.flat if isinstance(passes, ExplicitPasses) else passes.passes.flat
    for sizes in ((8,), (8, 8), (3,), (8,), (0,)):
        passes.clear()
        for index, size in enumerate(sizes):
            found += passes(*batch(size, len(found) + index, device), 1 / max(sum(sizes), 1))
        found.append(taken(passes))
        found.append(flat.values.clone())
    return found


def network(dropout: float) -> nn.Module:
    torch.manual_seed(1)
    return MLP((1, 3, 4), 5, hidden=(9, 7), dropout=dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_recorded_passes_give_the_bits_of_the_passes(dropout: float) -> None:
    """Law: loss, hits and gradients, with dropout; recording leaves no trace in either stream."""
    module, recorder = network(dropout), Recorder()
    direct = drive(passes_of(copy.deepcopy(module)))
    recorded = drive(CapturedPasses(passes_of(module), recorder))
    assert len(direct) == len(recorded)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(recorded, direct, strict=True))
    assert recorder.recorded == 4, "shapes, shares and whether a sum begins: once each"


def test_results_are_not_overwritten_by_the_next_replay() -> None:
    passes = CapturedPasses(passes_of(network(0.0)), Recorder())
    first = passes(*batch(8, 0), 1.0)[0]
    kept = float(first)
    passes.clear()
    passes(*batch(8, 1), 1.0)
    assert float(first) == kept


@pytest.mark.gpu
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_graphs_give_the_bits_of_the_passes_on_the_gpu(gpu: torch.device, dropout: float) -> None:
    module = network(dropout).to(gpu)
    direct = drive(passes_of(copy.deepcopy(module), gpu), gpu)
    recorded = drive(CapturedPasses(passes_of(module, gpu), record_graph), gpu)
    for mine, theirs in zip(recorded, direct, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0 if not dropout else 1e-6, atol=0)
