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
from tests.support.config_keys import EXECUTION, MATHS
from tests.support.odd_runs import run
from tests.support.runs import comparable, latest_weights

SMALL: dict[str, Any] = {
    "data.test": 10,
    "optimizer.name": "rmsprop",
    "optimizer.eps": 1e-2,
    "train.global_batch_size": 32,
    "train.batch_schedule": {2: 32},
    "train.clip_norm": 0.1,
    "train.swa_from_epoch": 99,
    "train.min_gain": 0.5,
    "checkpoint.every_steps": 2,
    "logging.every_steps": 3,
    "logging.gradients": 2,
}
"""Values that show in a run of nine steps on few samples."""
ELSEWHERE = (
    "deterministic",
    "precision.matmul",
    "data.collate",
    "name",
    "output_dir",
    "data.root",
    "data.download",
    "data.verify",
    "data.placement",
    "data.workers",
    "train.auto_batch",
    "train.patience",
    "compile.capture",
    "compile.enabled",
    "compile.mode",
    "compile.regional",
    "compile.cache",
    "compile.backward",
    "parallel.engine",
    "parallel.device",
    "parallel.threads",
    "parallel.find_unused_parameters",
    "parallel.init_timeout_seconds",
    "parallel.timeout_seconds",
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "profile.enabled",
    "checkpoint.keep_best",
    "checkpoint.resume",
    "checkpoint.upload",
    "dry_run.world_size",
    "evaluate.best",
    "evaluate.best_mode",
    "logging.wandb.mode",
)
"""Keys of places, devices and ways to execute, and those that this short run is too small for."""
FLIPPED = {key: value for key, value in (MATHS | EXECUTION | SMALL).items() if key not in ELSEWHERE}


def option(key: str) -> str:
    value = FLIPPED[key]
    plain = list(value) if isinstance(value, tuple) else value
    return f"--{key}={yaml.safe_dump(plain, default_flow_style=True).splitlines()[0]}"


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
    caplog.set_level(logging.INFO, logger="convoy")
    found, refusal = None, ""
    try:
        found = observed(tmp_path, option(key))
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
        config = load_config([option(key)], prog="", description="")
        used = key in ("optimizer.betas", "optimizer.eps")  # the usual optimizer is adam
        assert (key in unused_keys(config, 1)) is not used
        assert (key in unused_keys(config, 2)) is (key in NEEDS and not used)
