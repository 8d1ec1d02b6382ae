"""A key that is given does something, or the run says that it does not, or refuses it."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import InputError
from configs.identity import flatten
from configs.idle_keys import NEEDS, OF_SEVERAL_RANKS, unused_keys
from configs.load import load_config
from configs.schema import RunConfig
from tests.support.odd_runs import run
from tests.support.runs import comparable, latest_weights

FLIPPED: dict[str, Any] = {
    "seed": 1,
    "data.validation": 0.1,
    "data.test": 10,
    "data.drop_last": True,
    "data.prefetch_factor": 4,
    "data.augment.shift": 2.0,
    "data.augment.mixup": 0.2,
    "model.kwargs": {"width": 48},
    "task.name": "regression",
    "task.kwargs": {"beta": 2},
    "optimizer.name": "rmsprop",
    "optimizer.lr": 0.5,
    "optimizer.weight_decay": 0.5,
    "optimizer.kwargs": {"amsgrad": True},
    "optimizer.decay_norms_and_biases": False,
    "optimizer.layer_decay": 0.75,
    "optimizer.momentum": 0.5,
    "optimizer.nesterov": True,
    "optimizer.betas": [0.5, 0.5],
    "optimizer.eps": 1e-2,
    "schedule.name": "cosine",
    "schedule.kwargs": {"T_0": 3},
    "schedule.interval": "epoch",
    "schedule.warmup_steps": 3,
    "schedule.final_fraction": 0.5,
    "schedule.peak_fraction": 0.5,
    "schedule.initial_fraction": 0.5,
    "schedule.every_epochs": 1.5,
    "schedule.gamma": 0.5,
    "train.global_batch_size": 32,
    "train.batch_schedule": {2: 32},
    "train.clip_norm": 0.1,
    "train.label_smoothing": 0.1,
    "train.ema_decay": 0.9,
    "train.swa_from_epoch": 99,
    "train.min_gain": 0.5,
    "precision.dtype": "bf16",
    "precision.init_scale": 2.0,
    "precision.growth_interval": 5,
    "parallel.reduction": "exact",
    "parallel.shards": 4,
    "parallel.sync_batch_norm": True,
    "parallel.compression": "bf16",
    "parallel.powersgd_rank": 2,
    "parallel.powersgd_start_step": 10,
    "parallel.strategy": "fsdp",
    "parallel.bucket_mb": 5.0,
    "evaluate.every_epochs": 2,
    "checkpoint.every_steps": 2,
    "logging.every_steps": 3,
    "logging.gradients": 2,
    "logging.tensorboard": True,
    "logging.wandb.project": "other",
    "logging.wandb.tags": ["a"],
    "profile.steps": 5,
}


def observed(folder: Path, *more: str) -> Any:
    """All that a run leaves: weights, records, files."""
    found = run(folder, "Base", *more)
    digest = hashlib.sha256()
    for name, value in sorted(latest_weights(found).items()):
        digest.update(name.encode() + value.numpy().tobytes())
    files = sorted(str(path.relative_to(found)) for path in found.rglob("*"))
    return digest.hexdigest(), comparable(found), files


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return observed(tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("key", FLIPPED)
def test_a_key_changes_the_run_or_is_said_not_to(
    key: str, plain: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = yaml.safe_dump(FLIPPED[key], default_flow_style=True).splitlines()[0]
    caplog.set_level(logging.INFO, logger="convoy")
    found, refusal = None, ""
    try:
        found = observed(tmp_path, f"--{key}={given}")
    except InputError as error:
        refusal = str(error)
    said = f"{key} (takes " in caplog.text
    assert (found is not None and found != plain) or said or key.partition(".")[0] in refusal


@pytest.mark.parametrize("key", [*NEEDS, *OF_SEVERAL_RANKS])
def test_what_does_nothing_is_said_with_what_it_takes(key: str) -> None:
    """Law: nothing is said of a key at its default, nor of one that is used."""
    assert unused_keys(RunConfig(), 1) == {}
    assert key in flatten(RunConfig())
    if key in FLIPPED:
        given = yaml.safe_dump(FLIPPED[key], default_flow_style=True).splitlines()[0]
        config = load_config([f"--{key}={given}"], prog="", description="")
        used = key in ("optimizer.betas", "optimizer.eps")  # the usual optimizer is adam
        assert (key in unused_keys(config, 1)) is not used
        assert (key in unused_keys(config, 2)) is (key in NEEDS and not used)
