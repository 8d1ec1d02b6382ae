"""Which keys make a run the run it is, and which only say how it is executed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from configs.schema import RunConfig

EXECUTION_KEYS = (
    "name",
    "output_dir",
    "data.root",
    "data.download",
    "data.verify",
    "data.placement",
    "data.workers",
    "data.prefetch_factor",
    "train.epochs",
    "train.max_steps",
    "train.micro_batch_size",
    "train.auto_batch",
    "train.patience",
    "train.min_gain",
    "compile",
    "parallel.engine",
    "parallel.strategy",
    "parallel.cpu_offload",
    "parallel.activation_checkpointing",
    "parallel.device",
    "parallel.backend",
    "parallel.threads",
    "parallel.bucket_mb",
    "parallel.drift_every_steps",
    "parallel.init_timeout_seconds",
    "parallel.timeout_seconds",
    "checkpoint",
    "evaluate",
    "logging",
    "profile",
    "dry_run",
)
"""Keys that say how, where or how far to run: changing them continues the same run."""


def flatten(config: RunConfig) -> dict[str, Any]:
    """Every leaf of a config under its dotted key, in field order; mappings that a user writes
    (kwargs, a batch schedule) are one leaf."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and not prefix.endswith(("kwargs", "_schedule")):
            for key, child in value.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", asdict(config))
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Values under dotted keys -> a mapping of mappings, as in a YAML file."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return nested


def identity(config: RunConfig) -> dict[str, Any]:
    """The leaves that define the mathematics of a run."""
    return {
        key: value
        for key, value in flatten(config).items()
        if not any(key == name or key.startswith(name + ".") for name in EXECUTION_KEYS)
    }


def digest(config: RunConfig) -> str:
    """SHA-256 of the run's identity; equal digests continue each other."""
    canonical = json.dumps(identity(config), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
