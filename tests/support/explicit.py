"""A small network whose passes are written out, and batches for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from configs.schema_training import PrecisionConfig
from data.datasets import ArrayDataset, Datasets
from data.normalize import Normalize
from data.samples import Batch
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.plain_layers import describe
from trainer.networks.mlp import MLP
from trainer.optim.flat import FlatParameters
from trainer.ranks.precision import build_precision

CPU = torch.device("cpu")
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "fp16")
SCALE = 256.0
"""Of the loss in fp16."""


def normalize(input_shape: tuple[int, ...] = (1, 3, 4), num_classes: int = 5) -> Normalize:
    data = ArrayDataset(torch.zeros(1, *input_shape, dtype=torch.uint8), torch.zeros(1).long())
    facts = Datasets(
        train=data,
        test=data,
        input_shape=input_shape,
        num_classes=num_classes,
        mean=(0.3,),
        std=(0.4,),
        scale=255.0,
    )
    return Normalize(facts, CPU)


def network(*, dropout: float = 0.0, hidden: tuple[int, ...] = (9, 7)) -> nn.Module:
    torch.manual_seed(1)
    return MLP((1, 3, 4), 5, hidden=hidden, dropout=dropout)


def explicit(module: nn.Module, smoothing: float = 0.0, dtype: Dtype = "fp32") -> ExplicitPasses:
    shapes = describe(module)
    assert shapes is not None
    flat = FlatParameters([p for shape in shapes for p in shape.linear.parameters()])
    return ExplicitPasses(
        shapes,
        flat,
        normalize=normalize(),
        label_smoothing=smoothing,
        precision=build_precision(PrecisionConfig(dtype=dtype, init_scale=SCALE), CPU),
    )


def batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (size, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return inputs, torch.randint(0, 5, (size,), generator=generator)


def as_batch(inputs: Tensor, targets: Tensor) -> Batch:
    return Batch(inputs, targets, len(targets))
