"""Optimizers and schedulers of torch with arguments with which their state moves."""

from __future__ import annotations

from typing import Any

import torch

FUSED_OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.0, weight_decay=0.1, fused=True),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, fused=True),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.1, fused=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, betas=(0.8, 0.9), eps=1e-3, fused=True),
}

SCHEDULES: dict[str, dict[str, Any]] = {
    "ChainedScheduler": {
        "schedulers": [
            {"name": "ConstantLR", "kwargs": {"total_iters": 3}},
            {"name": "ExponentialLR", "kwargs": {"gamma": 0.9}},
        ]
    },
    "ConstantLR": {"total_iters": 3},
    "CosineAnnealingLR": {},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": "tests.support.optimisation:halved"},
    "LinearLR": {"total_iters": 4},
    "MultiStepLR": {"milestones": [1, 2, 5]},
    "MultiplicativeLR": {"lr_lambda": "tests.support.optimisation:shrinking"},
    "OneCycleLR": {},
    "PolynomialLR": {"total_iters": 8, "power": 2.0},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
    "SequentialLR": {
        "schedulers": [
            {"name": "LinearLR", "kwargs": {"total_iters": 2}},
            {"name": "StepLR", "kwargs": {"step_size": 2, "gamma": 0.5}},
        ],
        "milestones": [2],
    },
    "StepLR": {"step_size": 2, "gamma": 0.5},
}


def halved(count: int) -> float:
    return 0.5**count


def shrinking(count: int) -> float:
    return 1 - 0.1 / (count + 1)
