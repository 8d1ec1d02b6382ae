"""Which part of a step is computed in which number format."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal, get_args

import pytest
import torch
from torch import nn

from configs.errors import InputError
from configs.schema_training import PrecisionConfig
from trainer.ranks.precision import build_precision, has_bf16

Dtype = Literal["fp32", "bf16", "fp16"]
Matmul = Literal["highest", "high", "medium"]
COMPUTES_IN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")
BF16 = torch.bfloat16


def check_dtypes(dtype: Dtype, device: torch.device) -> None:
    precision = build_precision(PrecisionConfig(dtype=dtype), device)
    layer = nn.Linear(3, 2, device=device)
    with precision.autocast():
        logits = layer(torch.ones(4, 3, device=device))
        loss = logits.float().sum()
    loss.backward()
    assert logits.dtype is COMPUTES_IN[dtype]
    assert layer.weight.dtype is torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype is torch.float32
    assert layer(torch.ones(4, 3, device=device)).dtype is torch.float32  # autocast has ended


@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_the_forward_pass_runs_in_the_chosen_type_and_weights_stay_float32(dtype: Dtype) -> None:
    check_dtypes(dtype, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", get_args(Dtype))
def test_the_forward_pass_on_the_gpu_runs_in_the_chosen_type(
    gpu: torch.device, dtype: Dtype
) -> None:
    if dtype == "bf16" and not has_bf16():
        pytest.skip("this GPU has no bfloat16")
    check_dtypes(dtype, gpu)


def test_float32_is_left_alone_by_autocast() -> None:
    with build_precision(PrecisionConfig(dtype="fp32"), CPU).autocast():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("dtype", "enabled"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_its_loss(dtype: Dtype, enabled: bool) -> None:
    config = PrecisionConfig(dtype=dtype, init_scale=1024.0, growth_interval=7)
    scaler = build_precision(config, CPU).scaler
    assert scaler.is_enabled() is enabled
    scaled = scaler.scale(torch.tensor(3.0))
    assert float(scaled) == (3.0 * 1024.0 if enabled else 3.0)
    if enabled:
        assert scaler.get_growth_interval() == 7


@pytest.mark.parametrize("matmul", get_args(Matmul))
def test_the_inner_precision_of_matrix_products_is_set(matmul: Matmul) -> None:
    build_precision(PrecisionConfig(matmul=matmul), CPU)
    assert torch.get_float32_matmul_precision() == matmul


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_devices_that_are_left_to_accelerate_have_no_fp16(device: str) -> None:
    with pytest.raises(InputError, match=f"fp32 or bf16 on {device}"):
        build_precision(PrecisionConfig(dtype="fp16"), torch.device(device))
    assert build_precision(PrecisionConfig(dtype="bf16"), torch.device(device)).dtype is BF16


def test_a_gpu_that_only_emulates_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts it among those that support it: it computes slower than in float32."""
    found = SimpleNamespace(major=7, minor=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(InputError, match="fp32 or fp16 on Tesla T4"):
        build_precision(PrecisionConfig(dtype="bf16"), torch.device("cuda", 0))
