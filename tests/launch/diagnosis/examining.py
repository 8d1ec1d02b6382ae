"""The doctor's examination of planted runs, in this process."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from configs.schema import DataConfig, RunConfig
from configs.schema_model import ModelConfig
from configs.schema_training import OptimizerConfig, PrecisionConfig, ScheduleConfig, TrainConfig
from launch.diagnosis.examine import check_run
from launch.diagnosis.findings import Finding
from trainer.ranks.runtime import Runtime

PLANTED = "tests.programs.planted"


def planted_config(
    data: str = "healthy",
    model: str = "Net",
    *,
    lr: float = 1e-3,
    optimizer: str = "adam",
    dtype: Any = "fp32",
    schedule: dict[str, Any] | None = None,
    **kwargs: Any,
) -> RunConfig:
    """A run on planted data and a planted model, whose arguments are `kwargs`."""
    return RunConfig(
        data=DataConfig(dataset=f"{PLANTED}:{data}"),
        model=ModelConfig(name=f"{PLANTED}:{model}", kwargs=kwargs),
        optimizer=OptimizerConfig(name=optimizer, lr=lr),
        schedule=ScheduleConfig(**(schedule or {})),
        precision=PrecisionConfig(dtype=dtype),
        train=TrainConfig(global_batch_size=24),
    )


def examine(config: RunConfig, steps: int = 50) -> dict[str, Finding]:
    """Findings by the name of their check."""
    torch.set_num_threads(1)
    found = check_run(config, Runtime(launcher="python"), steps)
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """The checks that need attention, with their levels."""
    return {check: f.level for check, f in found.items() if f.needs_attention}


@cache
def healthy() -> dict[str, Finding]:
    return examine(planted_config())
