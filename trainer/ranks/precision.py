"""The type that a run computes in, and how the loss of fp16 is scaled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from configs.errors import InputError
from configs.schema_execution import OTHER_DEVICES
from configs.schema_training import PrecisionConfig

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Precision:
    """The type of the forward pass. Weights, gradients and optimizer state stay float32."""

    device_type: str
    dtype: torch.dtype | None
    """The type that autocast chooses; None: float32, without autocast."""
    scaler: torch.amp.GradScaler
    """Disabled except with fp16, whose small gradients would otherwise round to zero."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)


def loss_scale(scaler: torch.amp.GradScaler) -> Tensor:
    """The scale as a tensor on its device; `get_scale` would wait for the device.

    A loss must have been scaled before.
    """
    scale = scaler._get_scale_async()
    assert scale is not None, "no loss has been scaled yet"
    return scale


def scale_tensors(scaler: torch.amp.GradScaler) -> list[Tensor]:
    """What a GradScaler remembers from step to step, on its device; empty before its first loss."""
    found = (scaler._scale, scaler._growth_tracker) if scaler.is_enabled() else ()
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def forget_step(scaler: torch.amp.GradScaler) -> None:
    """Have a GradScaler forget a step that broke off: it would refuse to unscale the next one."""
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()


def has_bf16() -> bool:
    """Whether the current GPU computes in bfloat16 itself: others only hold numbers of that type,
    and compute slower than in float32."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def build_precision(config: PrecisionConfig, device: torch.device) -> Precision:
    """Build what `precision` asks for, and set how float32 matrices are multiplied.

    Raises:
        InputError: If the device cannot compute in that type.
    """
    dtype = DTYPES[config.dtype]
    if dtype is torch.bfloat16 and device.type == "cuda" and not has_bf16():
        raise InputError(
            "precision.dtype",
            given="bf16",
            expected=f"fp32 or fp16 on {torch.cuda.get_device_name(device)}",
            remedy="bfloat16 needs compute capability 8.0 or above.",
        )
    if dtype is torch.float16 and device.type in OTHER_DEVICES:
        raise InputError(
            "precision.dtype",
            given="fp16",
            expected=f"fp32 or bf16 on {device.type}",
            remedy="Whether a step is skipped is decided on CPUs and CUDA GPUs only.",
        )
    torch.set_float32_matmul_precision(config.matmul)
    scaler = torch.amp.GradScaler(
        device.type,
        init_scale=config.init_scale,
        growth_interval=config.growth_interval,
        enabled=dtype is torch.float16,
    )
    return Precision(device.type, dtype, scaler)
