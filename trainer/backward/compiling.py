"""torch.compile: with how many graphs, and what it takes on a CPU."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from configs.errors import InputError
from configs.schema_execution import CompileConfig
from data.loading.order import Plan
from trainer.backward.compile_cache import Recovering, cache_folder, drop_damaged


def compile_model(model: nn.Module, config: CompileConfig, plan: Plan) -> nn.Module:
    """The model, compiled.

    Every size of a micro-batch gets a graph of its own, since a dynamic one would be slower for
    all: usually two, full and short, and with train.batch_schedule more than torch would allow.
    With model.train_from so has every set of parameters that is trained.
    """
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(plan.micro_batch_sizes))
    drop_damaged(cache_folder())
    compiled: nn.Module = torch.compile(model, dynamic=False, mode=config.mode)  # type: ignore[assignment]
    return Recovering(compiled)


def check_compiler(device: torch.device) -> None:
    """Refuse to compile where that is not possible.

    Raises:
        InputError: On a CPU without a C++ compiler.
    """
    compilers = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    if device.type == "cpu" and not any(name and shutil.which(name) for name in compilers):
        raise InputError(
            "compile.enabled",
            given="true",
            expected="a C++ compiler (g++ or clang++) on the PATH",
            remedy="Install one, point CXX at one, or use --compile.enabled false.",
        )
