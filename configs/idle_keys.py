"""Keys that do nothing in a config, because another key asks for something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from configs.identity import flatten
from configs.schema import RunConfig

Used = Callable[[RunConfig], bool]


def _optimizer(*names: str) -> Used:
    return lambda config: config.optimizer.name.lower() in names


def _schedule(*names: str) -> Used:
    return lambda config: config.schedule.name in names


def _torch_schedule(config: RunConfig) -> bool:
    return config.schedule.name not in ("constant", "cosine", "one_cycle", "step", "exponential")


NEEDS: dict[str, tuple[Used, str]] = {
    "data.prefetch_factor": (lambda c: c.data.workers > 0, "data.workers"),
    "optimizer.momentum": (_optimizer("sgd"), "optimizer.name sgd"),
    "optimizer.nesterov": (_optimizer("sgd"), "optimizer.name sgd"),
    "optimizer.betas": (_optimizer("adam", "adamw", "muon"), "optimizer.name adam, adamw or muon"),
    "optimizer.eps": (_optimizer("adam", "adamw", "muon"), "optimizer.name adam, adamw or muon"),
    "optimizer.decay_norms_and_biases": (
        lambda c: c.optimizer.weight_decay > 0,
        "optimizer.weight_decay",
    ),
    "schedule.interval": (
        lambda c: _torch_schedule(c) and c.schedule.name.lower() != "reducelronplateau",
        "a scheduler of torch's other than ReduceLROnPlateau, which evaluations step",
    ),
    "schedule.final_fraction": (
        _schedule("cosine", "one_cycle"),
        "schedule.name cosine, one_cycle",
    ),
    "schedule.peak_fraction": (_schedule("one_cycle"), "schedule.name one_cycle"),
    "schedule.initial_fraction": (_schedule("one_cycle"), "schedule.name one_cycle"),
    "schedule.every_epochs": (_schedule("step"), "schedule.name step"),
    "schedule.gamma": (_schedule("step", "exponential"), "schedule.name step or exponential"),
    "model.train_from": (
        lambda c: all(epoch <= c.train.epochs for epoch in c.model.train_from.values()),
        "train.epochs of as many, for each part that is to be trained",
    ),
    "train.batch_schedule": (
        lambda c: all(epoch <= c.train.epochs for epoch in c.train.batch_schedule),
        "train.epochs of as many",
    ),
    "train.patience": (
        lambda c: c.evaluate.every_epochs is not None,
        "evaluate.every_epochs: only evaluations at the ends of epochs count",
    ),
    "train.min_gain": (lambda c: c.train.patience is not None, "train.patience"),
    "train.swa_from_epoch": (
        lambda c: c.train.swa_from_epoch is None or c.train.swa_from_epoch <= c.train.epochs,
        "train.epochs of as many",
    ),
    "precision.init_scale": (lambda c: c.precision.dtype == "fp16", "precision.dtype fp16"),
    "precision.growth_interval": (lambda c: c.precision.dtype == "fp16", "precision.dtype fp16"),
    "parallel.shard_size": (lambda c: c.parallel.strategy == "fsdp", "parallel.strategy fsdp"),
    "parallel.reshard_after_forward": (
        lambda c: c.parallel.strategy == "fsdp",
        "parallel.strategy fsdp",
    ),
    "parallel.shards": (lambda c: c.parallel.reduction == "exact", "parallel.reduction exact"),
    "parallel.powersgd_rank": (
        lambda c: c.parallel.compression == "powersgd",
        "parallel.compression powersgd",
    ),
    "parallel.powersgd_start_step": (
        lambda c: c.parallel.compression == "powersgd",
        "parallel.compression powersgd",
    ),
    "profile.warmup_steps": (lambda c: c.profile.enabled, "profile.enabled"),
    "profile.steps": (lambda c: c.profile.enabled, "profile.enabled"),
    **{
        f"logging.wandb.{key}": (
            lambda c: c.logging.wandb.mode != "disabled",
            "logging.wandb.mode online or offline",
        )
        for key in ("project", "entity", "group", "job_type", "tags", "artifacts")
    },
}
"""Keys with a default of their own, when they are used, and what that takes in words."""
OF_SEVERAL_RANKS = (
    "logging.ranks",
    "parallel.compression",
    "parallel.strategy",
    "parallel.shard_size",
    "parallel.reshard_after_forward",
    "parallel.sync_batch_norm",
    "parallel.backend",
    "parallel.drift_every_steps",
    "parallel.init_timeout_seconds",
    "parallel.timeout_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a config meets when it is carried out."""

    world_size: int = 1
    device: str = "cpu"
    """Its type."""
    bf16_products: bool = False
    """Whether the CPU multiplies float32 matrices in bfloat16 when it may."""
    compiled: bool = False
    reduction: str = "none"
    """How gradients of ranks become one, as the run says it."""
    published: bool = True
    """Whether the data set is one of the catalogue."""


def _products(config: RunConfig, setting: Setting) -> bool:
    on_cpu = setting.bf16_products and config.precision.matmul == "medium"
    return setting.device != "cpu" or on_cpu


def _asks_for_unused(config: RunConfig, setting: Setting) -> bool:
    exact = setting.reduction == "exact tree" and setting.world_size > 1
    return exact or setting.reduction in ("DDP", "PowerSGD")


MEETS: dict[str, tuple[Callable[[RunConfig, Setting], bool], str]] = {
    "data.download": (lambda _, met: met.published, "a data set of the catalogue"),
    "data.verify": (lambda _, met: met.published, "a data set of the catalogue"),
    "precision.matmul": (_products, "a GPU, or medium on a CPU with products in bfloat16"),
    **{
        f"compile.{key}": (lambda _, met: met.compiled, "a run that is compiled")
        for key in ("mode", "regional", "cache")
    },
    "parallel.bucket_mb": (
        lambda _, met: met.reduction in ("DDP", "PowerSGD", "all-reduce"),
        "several ranks that each hold the whole model, and parallel.reduction fast",
    ),
    "parallel.find_unused_parameters": (
        _asks_for_unused,
        "several ranks that each hold the whole model, and gradients by autograd",
    ),
    **{key: (lambda _, met: met.world_size > 1, "several ranks") for key in OF_SEVERAL_RANKS},
}
"""Keys whose use depends on where and how a run is carried out."""


def unused_keys(config: RunConfig, setting: Setting) -> dict[str, str]:
    """Keys that are not at their default and do nothing, with what they would need."""
    given, usual = flatten(config), flatten(RunConfig())
    changed = [key for key in given if given[key] != usual[key]]
    found = {key: NEEDS[key][1] for key in changed if key in NEEDS and not NEEDS[key][0](config)}
    return found | {
        key: MEETS[key][1] for key in changed if key in MEETS and not MEETS[key][0](config, setting)
    }
