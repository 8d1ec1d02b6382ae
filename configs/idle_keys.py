"""Keys that do nothing in a config, because another key asks for something else."""

from __future__ import annotations

from collections.abc import Callable

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
    "schedule.interval": (_torch_schedule, "a scheduler of torch's"),
    "schedule.final_fraction": (
        _schedule("cosine", "one_cycle"),
        "schedule.name cosine, one_cycle",
    ),
    "schedule.peak_fraction": (_schedule("one_cycle"), "schedule.name one_cycle"),
    "schedule.initial_fraction": (_schedule("one_cycle"), "schedule.name one_cycle"),
    "schedule.every_epochs": (_schedule("step"), "schedule.name step"),
    "schedule.gamma": (_schedule("step", "exponential"), "schedule.name step or exponential"),
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
    **{
        f"compile.{key}": (lambda c: c.compile.enabled is not False, "compile.enabled")
        for key in ("mode", "regional", "cache")
    },
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
    "parallel.compression",
    "parallel.strategy",
    "parallel.shard_size",
    "parallel.reshard_after_forward",
    "parallel.sync_batch_norm",
    "parallel.bucket_mb",
    "parallel.backend",
    "parallel.drift_every_steps",
)


def unused_keys(config: RunConfig, world_size: int) -> dict[str, str]:
    """Keys that are not at their default and do nothing, with what they would need.

    Args:
        config: The config of a run.
        world_size: Number of ranks.
    """
    given, usual = flatten(config), flatten(RunConfig())
    found = {
        key: what
        for key, (used, what) in NEEDS.items()
        if given[key] != usual[key] and not used(config)
    }
    if world_size == 1:
        changed = (key for key in OF_SEVERAL_RANKS if given[key] != usual[key])
        found |= dict.fromkeys(changed, "several ranks")
    return found
