"""Large products by oneDNN are the products they stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import trainer.backward.explicit.onednn
from configs.schema_training import PrecisionConfig
from tests.support.explicit import as_batch, normalize
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.onednn import (
    LARGE,
    LARGE_WEIGHT,
    keeps_upright,
    multiplies_faster,
    multiply,
    prefers_onednn,
)
from trainer.backward.explicit.plain_layers import describe
from trainer.networks.mlp import MLP
from trainer.optim.flat import FlatParameters
from trainer.ranks.precision import build_precision

pytestmark = pytest.mark.skipif(
    not torch._C._has_mkldnn, reason="THIS BUILD OF TORCH HAS NO oneDNN: its products are MKL's"
)


def found(module: MLP, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Loss, hits, gradients and weights of two batches, the second one added to the first."""
    monkeypatch.setattr("trainer.backward.explicit.onednn.prefers_onednn", lambda: wanted)
    monkeypatch.setattr("trainer.backward.explicit.explicit_passes.prefers_onednn", lambda: wanted)
    module = copy.deepcopy(module)
    shapes = describe(module)
    assert shapes is not None
    parameters = [p for shape in shapes for p in shape.linear.parameters()]
    flat = FlatParameters(parameters, keeps_upright)
    passes = ExplicitPasses(
        shapes,
        flat,
        normalize=normalize((1, 28, 28), 10),
        label_smoothing=0.1,
        precision=build_precision(PrecisionConfig(), torch.device("cpu")),
    )
    assert parameters[0].is_contiguous() == wanted
    assert not parameters[2].is_contiguous(), "too small to gain"
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(0, 256, (128, 1, 28, 28), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 10, (128,), generator=generator)
    torch.manual_seed(2)
    rows: list[Tensor] = []
    metrics: list[Any] = []
    passes.stage(inputs, targets, 1 / 64, 2)
    for clear in (True, False):
        if clear:
            passes.clear()
        metrics += passes(as_batch(inputs, targets), 1 / 64)[:2]
        rows += [g.clone() for g in flat.views(flat.gradients)]
    return [*rows, *metrics[-2:], *module.state_dict().values()]


def test_passes_with_it_are_passes_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = MLP((1, 28, 28), 10, hidden=(256, 128), dropout=0.2)
    assert module.layers[1].weight.numel() >= LARGE_WEIGHT
    assert 64 * module.layers[1].weight.numel() >= LARGE
    with_it, without = (found(module, wanted, monkeypatch) for wanted in (True, False))
    for mine, theirs in zip(with_it, without, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_a_product(relu: bool) -> None:
    left, right, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    expected = left @ right.t() + bias
    expected = expected.relu() if relu else expected
    for transposed in (right, right.t().contiguous().t()):
        mine = multiply(left.t().contiguous().t(), transposed, bias, relu=relu)
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize(
    ("vendor", "flags", "faster"),
    [
        ("AuthenticAMD", "fma avx2 avx512f avx512vl", True),
        ("AuthenticAMD", "fma avx2", False),
        ("GenuineIntel", "fma avx2 avx512f", False),
    ],
)
def test_maker_and_instructions_decide(vendor: str, flags: str, faster: bool) -> None:
    """As measured: on Zen 3, without AVX-512, MKL is the faster one."""
    assert multiplies_faster(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n") is faster


def test_the_processor_decides_once() -> None:
    prefers_onednn.cache_clear()
    assert prefers_onednn() is prefers_onednn()
    assert trainer.backward.explicit.onednn.prefers_onednn.cache_info().hits == 1
