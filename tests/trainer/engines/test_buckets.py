"""In which parts a gradient travels, and where that is not chosen by measuring."""

from __future__ import annotations

import pytest
import torch

import trainer.engines.buckets
from configs.schema_execution import ParallelConfig
from trainer.engines.buckets import MIB, bucket_mib, cut, flat_parts, is_free, unmeasured
from trainer.ranks.link import Link
from trainer.ranks.runtime import Runtime

TWO, THREE = (Runtime(launcher="torchrun", world_size=n, backend="gloo") for n in (2, 3))
GPUS = Runtime(launcher="torchrun", world_size=8, backend="nccl", device=torch.device("cuda", 0))
AUTO = ParallelConfig()


@pytest.mark.parametrize(
    ("sizes", "most", "starts"),
    [
        ([8, 4, 2, 1], 1, [3, 2, 1, 0]),
        ([8, 4, 2, 1], 3, [2, 1, 0]),
        ([8, 4, 2, 1], 7, [1, 0]),
        ([8, 4, 2, 1], 8, [0]),
        ([8], 1, [0]),
    ],
)
def test_parts_are_whole_layers_from_the_last_one_down(
    sizes: list[int], most: int, starts: list[int]
) -> None:
    assert cut(sizes, most) == starts


def test_layouts_that_would_move_bits_are_not_measured() -> None:
    """Three ranks over gloo keep the layout that they always had, and so does PowerSGD."""
    assert [is_free(AUTO, runtime) for runtime in (TWO, THREE, GPUS)] == [True, False, True]
    assert not is_free(ParallelConfig(compression="powersgd"), GPUS)
    assert not is_free(ParallelConfig(bucket_mb=3.0), TWO)
    assert bucket_mib(AUTO, THREE, 1 << 30) == 25.0
    assert not is_free(unmeasured(AUTO), GPUS), "as a deterministic run has it"
    assert unmeasured(ParallelConfig(bucket_mb=3.0)).bucket_mb == 3.0
    assert bucket_mib(ParallelConfig(bucket_mb=3.0), TWO, 1 << 30) == 3.0
    gradients = torch.zeros(3000)
    layers = {"gradients": gradients, "starts": [0, 2000], "first_product": lambda: None}
    assert flat_parts(AUTO, THREE, **layers) == [0]  # type: ignore[arg-type]
    assert flat_parts(ParallelConfig(bucket_mb=0.001), THREE, **layers) == [1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("link", "mib", "parts"),
    [
        (Link(latency=20e-6, bandwidth=100e9), 8e6 / MIB, [0]),  # one node
        (Link(latency=40e-6, bandwidth=1e9), 1.0, [1, 0]),  # a slow network: bytes are dear
        (Link(latency=5e-3, bandwidth=100e9), 100.0, [0]),
    ],
)
def test_a_bucket_is_worth_its_latency(
    monkeypatch: pytest.MonkeyPatch, link: Link, mib: float, parts: list[int]
) -> None:
    """Law: four latencies of bandwidth, 1 to 100 MiB under DDP, whole layers otherwise."""
    monkeypatch.setattr(trainer.engines.buckets, "measure_link", lambda runtime, size: link)
    assert bucket_mib(AUTO, GPUS, 1 << 30) == pytest.approx(mib, rel=1e-3)
    found = flat_parts(
        AUTO,
        GPUS,
        gradients=torch.zeros(300_000),
        starts=[0, 200_000],
        first_product=lambda: None,
    )
    assert found == parts


@pytest.mark.parametrize(("apart", "parts"), [(0.5, [1, 0]), (0.99, [0]), (2.0, [0])])
def test_on_cpus_parts_are_made_where_they_are_quicker(
    monkeypatch: pytest.MonkeyPatch, apart: float, parts: list[int]
) -> None:
    monkeypatch.setattr(trainer.engines.buckets, "slowest", lambda *_: [1.0, apart])
    found = flat_parts(
        AUTO, TWO, gradients=torch.zeros(300), starts=[0, 200], first_product=lambda: None
    )
    assert found == parts
