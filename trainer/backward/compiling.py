"""torch.compile: whether, and with how many graphs."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from configs.errors import InputError
from configs.schema_execution import CompileConfig
from data.loading.order import Plan


def compile_if_asked(
    model: nn.Module, config: CompileConfig, device: torch.device, plan: Plan
) -> nn.Module:
    """The model, compiled if `should_compile` says so.

    Every size of a micro-batch gets a graph of its own, since a dynamic one would be slower for
    all: usually two, full and short, and with train.batch_schedule more than torch would allow.
    """
    if not should_compile(config, device):
        return model
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * len(plan.micro_batch_sizes))
    return torch.compile(model, dynamic=False, mode=config.mode)  # type: ignore[return-value]


def should_compile(config: CompileConfig, device: torch.device) -> bool:
    """Decide `compile.enabled: auto` (on a GPU), and check that compiling is possible.

    Raises:
        InputError: If it is asked for on a CPU without a C++ compiler.
    """
    enabled = device.type == "cuda" if config.enabled == "auto" else config.enabled
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if (
        enabled
        and device.type == "cpu"
        and not any(name and shutil.which(name) for name in compilers)
    ):
        raise InputError(
            "compile.enabled",
            given="true",
            expected="a C++ compiler (g++ or clang++) on the PATH",
            remedy="Install one, point CXX at one, or use --compile.enabled false.",
        )
    return enabled
