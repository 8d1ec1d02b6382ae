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
from configs.idle_keys import MEETS, NEEDS, Setting, unused_keys
from configs.load import load_config
from configs.schema import RunConfig
from tests.support.config_keys import EXECUTION, MATHS
from tests.support.odd_runs import ODD, run
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
    "data.collate",
    "name",
    "output_dir",
    "data.placement",
    "data.workers",
    "train.auto_batch",
    "train.patience",
    "compile.capture",
    "compile.enabled",
    "compile.backward",
    "parallel.engine",
    "parallel.device",
    "parallel.threads",
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
VALUES = MATHS | EXECUTION | SMALL
FLIPPED = {key: value for key, value in VALUES.items() if key not in ELSEWHERE}


def option(key: str) -> str:
    value = VALUES[key]
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


@pytest.mark.parametrize("key", [*NEEDS, *MEETS])
def test_nothing_is_said_of_a_key_at_its_default(key: str) -> None:
    assert unused_keys(RunConfig(), Setting()) == {}
    assert key in flatten(RunConfig())


GPU, DDP = Setting(device="cuda"), Setting(world_size=2, reduction="DDP")
SEVERAL = Setting(world_size=2, reduction="all-reduce")


@pytest.mark.parametrize(
    ("key", "idle", "used"),
    [
        ("precision.matmul", Setting(), GPU),
        ("compile.mode", GPU, Setting(compiled=True)),
        ("parallel.bucket_mb", Setting(world_size=2, reduction="exact tree"), SEVERAL),
        ("parallel.find_unused_parameters", SEVERAL, DDP),
        ("parallel.compression", Setting(), SEVERAL),
        ("parallel.timeout_seconds", Setting(), SEVERAL),
        ("data.verify", Setting(published=False), Setting()),
        ("optimizer.momentum", "optimizer.name=adam", "optimizer.name=sgd"),
        ("optimizer.betas", "optimizer.name=sgd", "optimizer.name=muon"),
        ("optimizer.eps", "optimizer.name=rmsprop", "optimizer.name=adamw"),
        ("optimizer.decay_norms_and_biases", "", "optimizer.weight_decay=0.1"),
        ("schedule.interval", "schedule.name=reducelronplateau", "schedule.name=steplr"),
        ("schedule.gamma", "schedule.name=cosine", "schedule.name=exponential"),
        ("schedule.peak_fraction", "schedule.name=cosine", "schedule.name=one_cycle"),
        ("schedule.final_fraction", "schedule.name=step", "schedule.name=cosine"),
        ("schedule.every_epochs", "schedule.name=exponential", "schedule.name=step"),
        ("train.min_gain", "", "train.patience=2"),
        ("train.patience", "evaluate.every_epochs=null", "evaluate.every_epochs=2"),
        ("train.swa_from_epoch", "train.epochs=98", "train.epochs=99"),
        ("train.batch_schedule", "train.epochs=1", "train.epochs=3"),
        ("model.train_from", "train.epochs=2", "train.epochs=3"),
        ("precision.init_scale", "precision.dtype=bf16", "precision.dtype=fp16"),
        ("parallel.shards", "", "parallel.reduction=exact"),
        ("parallel.powersgd_rank", "parallel.compression=bf16", "parallel.compression=powersgd"),
        ("data.prefetch_factor", "", "data.workers=2"),
        ("profile.steps", "", "profile.enabled=true"),
        ("logging.wandb.tags", "", "logging.wandb.mode=offline"),
    ],
)
def test_a_key_is_idle_beside_some_and_used_beside_others(
    key: str, idle: str | Setting, used: str | Setting
) -> None:
    """Law: of pairs of keys, and of a key and what the run meets."""

    def is_unused(given: str | Setting) -> bool:
        more = [f"--{given}"] if given and isinstance(given, str) else []
        config = load_config([option(key), *more], prog="", description="")
        return key in unused_keys(config, given if isinstance(given, Setting) else DDP)

    assert is_unused(idle)
    assert not is_unused(used)


def test_what_a_run_meets_is_what_it_says_of_its_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One rank on a CPU over data of one's own, not compiled."""
    idle = [key for key in MEETS if key in FLIPPED and key != "parallel.strategy"]
    assert len(idle) >= 10
    with caplog.at_level(logging.INFO, logger="convoy"):
        run(tmp_path, "Base", "--train.max_steps=1", "--data.root=/data", *map(option, idle))
    for key in (*idle, "data.root"):
        assert f"{key} (takes " in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        ("train.label_smoothing=0.1", "task.loss=torch.nn.functional:cross_entropy"),
        ("train.label_smoothing=0.1", f"task.name={ODD}:own_task"),
        ("train.label_smoothing=0.1", "task.name=regression", f"data.dataset={ODD}:toy_numbers"),
        ("data.augment.mixup=0.2", "task.name=regression", f"data.dataset={ODD}:toy_numbers",
         "data.kwargs={shape: [4]}"),
        ("data.augment.flip=0.5",),
        ("schedule.kwargs={gamma: 1}",),
        ("task.kwargs={beta: 1}",),
        ("model.kwargs={width: 3}",),
        ("data.kwargs={width: 3}",),
        ("optimizer.kwargs={width: 3}",),
        ("optimizer.weight_decay=0.1", "optimizer.name=rprop"),
        ("optimizer.layer_decay=0.5", "optimizer.groups=x:y"),
        ("model.weights_partial=[a]",),
        ("parallel.cpu_offload=true",),
        ("parallel.activation_checkpointing=true",),
        ("parallel.reduction=exact", "parallel.compression=bf16"),
        ("parallel.reduction=exact", "parallel.engine=accelerate"),
        ("parallel.reduction=exact", "parallel.strategy=fsdp"),
        ("train.swa_from_epoch=2", "train.ema_decay=0.9"),
        ("data.test=10",),
        ("compile.backward=explicit",),
        ("compile.capture=true",),
        ("task.name=loss",),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_had_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    """Law: rather than one key left without effect."""
    with pytest.raises(InputError):
        run(tmp_path, "Base", *(f"--{given}" for given in options))
    assert not list(tmp_path.iterdir())
