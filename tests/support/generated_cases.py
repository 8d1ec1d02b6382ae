"""Runs of generated networks: their options, and what the plain loop makes of the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support import generated_networks as made
from tests.support.odd_networks import WEIGHTS
from tests.support.odd_runs import arguments
from tests.support.plain_loop import Settings, plain_loop
from trainer.checkpoints.checkpoint import load_checkpoint

HERE = "tests.support.generated_networks"
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
ADAMW: dict[str, Any] = {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.01}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A generated network, and how it is learned."""

    seed: int
    features: tuple[str, ...]
    ranks: int = 1
    engine: str = "native"
    """native, accelerate, fsdp, or exact for exact reduction over two shards."""
    dtype: str = "fp32"
    optimizer: str = "sgd"
    clip: float | None = None
    decay: float | None = None
    micro: int | None = None
    weighted: bool = False
    """Whether the loss weighs classes."""

    @property
    def name(self) -> str:
        more = ["weighted" * self.weighted, f"clip{self.clip}" * bool(self.clip)]
        more += [f"ema{self.decay}" * bool(self.decay)]
        parts = [str(self.seed), *self.features, self.engine, self.dtype, self.optimizer, *more]
        return "-".join(part for part in (*parts, f"micro{self.micro}" * bool(self.micro)) if part)

    @property
    def num_train(self) -> int:
        """Global batches of 64, 64 and 8, where statistics need several samples, or 1: fewer than
        ranks or shards."""
        return 136 if "normed" in self.features else 129

    @property
    def same_kernel(self) -> bool:
        """torch's fused SGD fails where a momentum begins later than others."""
        return self.optimizer != "sgd" or "conditional" not in self.features

    def arguments(self, folder: Path) -> list[str]:
        """Options of `launch/train.py`."""
        chosen = {"sgd": SGD, "adamw": ADAMW}[self.optimizer]
        engine = {
            "native": [],
            "accelerate": ["--parallel.engine=accelerate"],
            "fsdp": ["--parallel.strategy=fsdp"],
            "exact": ["--parallel.reduction=exact", "--parallel.shards=2"],
        }[self.engine]
        features = ", ".join(self.features)
        given = {"clip_norm": self.clip, "ema_decay": self.decay, "micro_batch_size": self.micro}
        return arguments(
            folder,
            f"{HERE}:network",
            f"--name={self.name}",
            f"--model.kwargs={{seed: {self.seed}, features: [{features}]}}",
            f"--data.dataset={HERE}:toy",
            f"--data.kwargs={{num_train: {self.num_train}}}",
            f"--data.order={HERE}:in_turn",
            f"--optimizer.name={self.optimizer}",
            *(f"--optimizer.{key}={value}" for key, value in chosen.items()),
            *(f"--train.{key}={value}" for key, value in given.items() if value is not None),
            f"--precision.dtype={self.dtype}",
            "--precision.init_scale=1024",
            "--parallel.threads=1",
            *(["--task.loss=tests.support.odd_networks:weighted_module"] * self.weighted),
            *engine,
        )

    def expected(self) -> dict[str, Tensor]:
        """All that the plain loop ends with, by name."""
        scaled = self.dtype == "fp16"
        kinds = {
            "sgd": partial(torch.optim.SGD, fused=self.same_kernel and not scaled, **SGD),
            "adamw": partial(torch.optim.AdamW, fused=True, **ADAMW),
        }
        exact = self.engine == "exact"
        how = Settings(
            optimizer=kinds[self.optimizer],
            dtype=DTYPES[self.dtype],
            parts=2 if exact else self.ranks,
            mean_of_buffers=exact,
            micro=self.micro or 64,
            evenly=self.engine == "fsdp",
            weights=WEIGHTS if self.weighted else None,
            clip=self.clip,
            decay=self.decay,
        )
        data: Any = made.toy(self.num_train).train
        model = made.network(self.seed, self.features)
        average = plain_loop(model, data.inputs, data.targets, how)
        state = {**model.state_dict(), **dict(model.named_buffers())}
        if average is not None:
            state |= {f"average {name}": value for name, value in average.state_dict().items()}
        return state

    def found(self, folder: Path) -> dict[str, Tensor]:
        """The same of the latest checkpoint of its run."""
        weights, trainer = load_checkpoint(folder / self.name / "checkpoints" / "latest")
        average = {f"average {name}": value for name, value in (trainer["ema"] or {}).items()}
        return {**weights, **trainer["buffers"], **average}


def cases(count: int, *, ranks: int, engines: tuple[str, ...], first: int = 0) -> list[Case]:
    """So many, each of a seed of its own; together they have every feature with every engine."""
    return [case(seed, ranks=ranks, engines=engines) for seed in range(first, first + count)]


def case(seed: int, *, ranks: int, engines: tuple[str, ...]) -> Case:
    draw = random.Random(f"{seed} on {ranks}")
    engine = engines[seed % len(engines)]
    known = [name for name in made.FEATURES if name != "weight-hooked" or engine != "fsdp"]
    features = draw.sample(known, draw.randint(2, 4))
    must = known[(seed // len(engines)) % len(known)]
    accumulates = engine != "exact" and "normed" not in features and must != "normed"
    return Case(
        seed=seed,
        features=tuple(dict.fromkeys([*features, must])),
        ranks=ranks,
        engine=engine,
        dtype=draw.choice(["fp32", "fp32", "bf16", "fp16"]),
        optimizer=draw.choice(["sgd", "adamw"]),
        clip=draw.choice([None, 0.5]),
        decay=draw.choice([None, 0.9]),
        micro=draw.choice([None, 16]) if accumulates else None,
        weighted=draw.random() < 0.25,
    )
