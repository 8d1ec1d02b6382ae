"""The ways that a run can take, and what the choice between them looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from data.augment import Augment
from data.loading.order import Plan
from trainer.objective.task import Task

Engine = Literal["native", "FSDP", "Accelerate", "Accelerate with FSDP"]
Gradients = Literal["written out", "autograd", "compiled autograd"]
Reduction = Literal["none", "all-reduce", "DDP", "PowerSGD", "exact tree", "reduce-scatter"]
KernelKind = Literal["flat", "direct", "own"]
KERNELS = {
    "flat": "one fused kernel over all parameters",
    "direct": "torch's fused kernel, called directly",
    "own": "the optimizer's own step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the decision looks at besides the config."""

    model: nn.Module
    task: Task
    augment: Augment
    plan: Plan
    input_shape: tuple[int, ...]
    device: torch.device
    world_size: int
    resident: tuple[bool, str]
    """Whether the data set lives on the device, and why (`data.loading.loader.placement`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The ways that a run takes, each with its reason."""

    engine: Engine
    gradients: Gradients
    reduction: Reduction
    kernel: KernelKind
    max_steps: int
    """Optimizer steps in a row at most, without the host in between."""
    cuda_graphs: bool
    """Whether these are recorded and replayed."""
    tried: bool
    """Whether a recording is compared with a step before the run relies on it."""
    stages: bool
    """Whether the batches of several steps are made ready together."""
    resident: bool
    """Whether the data set lives on the device."""
    regional: bool = False
    """Whether blocks are compiled by themselves, and equal ones once."""
    channels_last: bool = False
    """Whether weights of convolutions have their channels last in memory."""
    because: Mapping[str, str] = field(default_factory=dict)
    """The reason for each of the `ways`, by name."""

    @property
    def compiled(self) -> bool:
        return self.gradients == "compiled autograd"

    @property
    def ways(self) -> dict[str, str]:
        """Each choice in words."""
        details = [
            *(["each block once"] if self.regional else []),
            *(["channels last"] if self.channels_last else []),
        ]
        more = f" ({', '.join(details)})" if details else ""
        steps = "one by one" if self.max_steps == 1 else f"up to {self.max_steps} in a row"
        if self.cuda_graphs:
            steps = f"CUDA graphs of {steps}{', if a trial agrees' if self.tried else ''}"
        return {
            "engine": self.engine,
            "gradients": self.gradients + more,
            "reduction": self.reduction,
            "optimizer": KERNELS[self.kernel],
            "steps": steps,
            "data": "on the device" if self.resident else "from host memory",
        }

    def line(self) -> str:
        """`runs as: ...`, for the log."""
        return "runs as: " + ", ".join(f"{name} {way}" for name, way in self.ways.items())

    def to_json(self) -> dict[str, dict[str, str]]:
        """Each choice with its reason, for environment.json."""
        return {
            name: {"way": way, "because": self.because[name]} for name, way in self.ways.items()
        }
