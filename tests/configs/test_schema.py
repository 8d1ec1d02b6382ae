"""Configs refuse values no run could use, document every key, and know what a run is."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from typing import Any

import pytest

from configs.errors import InputError
from configs.identity import defines_mathematics, digest, flatten, identity
from configs.keys import known_keys
from configs.schema import DataConfig, RunConfig
from configs.schema_execution import DryRunConfig, ParallelConfig, ProfileConfig
from configs.schema_model import ModelConfig
from configs.schema_records import CheckpointConfig, EvaluateConfig, LoggingConfig
from configs.schema_training import OptimizerConfig, PrecisionConfig, ScheduleConfig, TrainConfig
from tests.support.config_keys import EXECUTION, MATHS

INF, NAN = math.inf, math.nan

REFUSED: list[tuple[type, dict[str, Any], str, str]] = [
    # class, arguments, the key at fault, what the message expects
    (DataConfig, {"workers": -1}, "data.workers", "0 or more"),
    (DataConfig, {"placement": "device", "workers": 2}, "data.workers", "data.placement=device"),
    (DataConfig, {"prefetch_factor": 0}, "data.prefetch_factor", "1 or more"),
    (OptimizerConfig, {"lr": 0.0}, "optimizer.lr", "above 0"),
    (OptimizerConfig, {"lr": -1e-3}, "optimizer.lr", "above 0"),
    (OptimizerConfig, {"weight_decay": -0.1}, "optimizer.weight_decay", "0 or more"),
    (OptimizerConfig, {"momentum": 1.0}, "optimizer.momentum", "momentum < 1"),
    (OptimizerConfig, {"momentum": -0.1}, "optimizer.momentum", "0 <= momentum"),
    (OptimizerConfig, {"momentum": 0.0, "nesterov": True}, "optimizer.nesterov", "momentum"),
    (OptimizerConfig, {"betas": (0.9, 1.0)}, "optimizer.betas", "beta < 1"),
    (OptimizerConfig, {"betas": (-0.1, 0.9)}, "optimizer.betas", "0 <= beta"),
    (OptimizerConfig, {"betas": (NAN, 0.9)}, "optimizer.betas", "0 <= beta"),
    (OptimizerConfig, {"eps": 0.0}, "optimizer.eps", "above 0"),
    (OptimizerConfig, {"layer_decay": 0.0}, "optimizer.layer_decay", "layer_decay <= 1"),
    (OptimizerConfig, {"layer_decay": 1.5}, "optimizer.layer_decay", "layer_decay <= 1"),
    (OptimizerConfig, {"kwargs": {"lr": 1}}, "optimizer.kwargs", "no lr"),
    (
        OptimizerConfig,
        {"layer_decay": 0.5, "groups": "a:b"},
        "optimizer.groups",
        "optimizer.layer_decay",
    ),
    (ScheduleConfig, {"warmup_steps": -1}, "schedule.warmup_steps", "0 steps or more"),
    (ScheduleConfig, {"final_fraction": -0.1}, "schedule.final_fraction", "from 0 to 1"),
    (ScheduleConfig, {"final_fraction": 1.1}, "schedule.final_fraction", "from 0 to 1"),
    (ScheduleConfig, {"initial_fraction": 1.1}, "schedule.initial_fraction", "from 0 to 1"),
    (ScheduleConfig, {"initial_fraction": -0.1}, "schedule.initial_fraction", "from 0 to 1"),
    (ScheduleConfig, {"peak_fraction": 0.0}, "schedule.peak_fraction", "between 0 and 1"),
    (ScheduleConfig, {"peak_fraction": 1.0}, "schedule.peak_fraction", "between 0 and 1"),
    (ScheduleConfig, {"every_epochs": 0.0}, "schedule.every_epochs", "above 0"),
    (ScheduleConfig, {"gamma": 0.0}, "schedule.gamma", "gamma <= 1"),
    (ScheduleConfig, {"gamma": 1.5}, "schedule.gamma", "gamma <= 1"),
    (TrainConfig, {"epochs": 0}, "train.epochs", "1 or more"),
    (TrainConfig, {"max_steps": 0}, "train.max_steps", "1 or more, or null"),
    (TrainConfig, {"global_batch_size": 0}, "train.global_batch_size", "1 or more"),
    (TrainConfig, {"micro_batch_size": 0}, "train.micro_batch_size", "1 or more"),
    (TrainConfig, {"micro_batch_size": 7}, "train.micro_batch_size", "divisor"),
    (TrainConfig, {"micro_batch_size": 128}, "train.micro_batch_size", "divisor"),
    (
        TrainConfig,
        {"micro_batch_size": 64, "batch_schedule": {3: 96}},
        "train.micro_batch_size",
        "every size in train.batch_schedule",
    ),
    (TrainConfig, {"batch_schedule": {1: 96}}, "train.batch_schedule", "epochs from 2 on"),
    (TrainConfig, {"batch_schedule": {2: 0}}, "train.batch_schedule", "1 sample or more"),
    (TrainConfig, {"clip_norm": 0.0}, "train.clip_norm", "above 0, or null"),
    (TrainConfig, {"clip_norm": INF}, "train.clip_norm", "above 0, or null"),
    (TrainConfig, {"label_smoothing": 1.0}, "train.label_smoothing", "label_smoothing < 1"),
    (TrainConfig, {"label_smoothing": -0.1}, "train.label_smoothing", "0 <= label_smoothing"),
    (TrainConfig, {"ema_decay": 0.0}, "train.ema_decay", "ema_decay < 1, or null"),
    (TrainConfig, {"ema_decay": 1.0}, "train.ema_decay", "ema_decay < 1, or null"),
    (PrecisionConfig, {"init_scale": 0.0}, "precision.init_scale", "above 0"),
    (PrecisionConfig, {"growth_interval": 0}, "precision.growth_interval", "1 or more"),
    (ParallelConfig, {"shards": 0}, "parallel.shards", "power of two"),
    (ParallelConfig, {"shards": 6}, "parallel.shards", "power of two"),
    (ParallelConfig, {"shards": -2}, "parallel.shards", "power of two"),
    (
        ParallelConfig,
        {"reduction": "exact", "strategy": "fsdp"},
        "parallel.strategy",
        "ddp with parallel.reduction=exact",
    ),
    (
        ParallelConfig,
        {"strategy": "fsdp", "drift_every_steps": 1},
        "parallel.drift_every_steps",
        "null with parallel.strategy=fsdp",
    ),
    (
        ParallelConfig,
        {"reduction": "exact", "compression": "bf16"},
        "parallel.compression",
        "none with parallel.reduction=exact",
    ),
    (
        ParallelConfig,
        {"strategy": "fsdp", "compression": "fp16"},
        "parallel.compression",
        "none or bf16",
    ),
    (
        ParallelConfig,
        {"reduction": "exact", "sync_batch_norm": True},
        "parallel.sync_batch_norm",
        "false with parallel.reduction=exact",
    ),
    (ParallelConfig, {"powersgd_rank": 0}, "parallel.powersgd_rank", "1 or more"),
    (ParallelConfig, {"powersgd_start_step": 1}, "parallel.powersgd_start_step", "2 or more"),
    (ParallelConfig, {"threads": 0}, "parallel.threads", "1 or more, or null"),
    (ParallelConfig, {"drift_every_steps": 0}, "parallel.drift_every_steps", "1 or more, or null"),
    (ParallelConfig, {"bucket_mb": 0.0}, "parallel.bucket_mb", "above 0, or auto"),
    (ParallelConfig, {"init_timeout_seconds": 0.0}, "parallel.init_timeout_seconds", "above 0"),
    (ParallelConfig, {"timeout_seconds": 0.0}, "parallel.timeout_seconds", "above 0"),
    (CheckpointConfig, {"every_steps": 0}, "checkpoint.every_steps", "1 or more, or null"),
    (CheckpointConfig, {"every_epochs": 0}, "checkpoint.every_epochs", "1 or more, or null"),
    (CheckpointConfig, {"keep": 1}, "checkpoint.keep", "2 or more"),
    (CheckpointConfig, {"resume": ""}, "checkpoint.resume", "auto, never or a path"),
    (EvaluateConfig, {"every_epochs": 0}, "evaluate.every_epochs", "1 or more, or null"),
    (EvaluateConfig, {"batch_size": 0}, "evaluate.batch_size", "1 or more"),
    (LoggingConfig, {"every_steps": 0}, "logging.every_steps", "1 or more"),
    (LoggingConfig, {"gradients": 0}, "logging.gradients", "1 or more, or null"),
    (ProfileConfig, {"warmup_steps": -1}, "profile.warmup_steps", "0 or more"),
    (ProfileConfig, {"steps": 0}, "profile.steps", "1 or more"),
    (DryRunConfig, {"world_size": 0}, "dry_run.world_size", "1 or more, or null"),
    (RunConfig, {"name": ""}, "name", "plain folder name"),
    (RunConfig, {"name": "a/b"}, "name", "plain folder name"),
    (RunConfig, {"name": ".."}, "name", "plain folder name"),
    (RunConfig, {"name": "."}, "name", "plain folder name"),
    (RunConfig, {"output_dir": ""}, "output_dir", "a folder"),
    (RunConfig, {"seed": -1}, "seed", "whole number from 0"),
    (RunConfig, {"seed": 2**63}, "seed", "whole number from 0"),
    (
        RunConfig,
        {
            "train": TrainConfig(global_batch_size=12),
            "parallel": ParallelConfig(reduction="exact", shards=8),
        },
        "train.global_batch_size",
        "a multiple of parallel.shards=8",
    ),
]

GROUPS = {
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "train": TrainConfig,
    "precision": PrecisionConfig,
    "parallel": ParallelConfig,
    "evaluate": EvaluateConfig,
    "logging": LoggingConfig,
}
FLOATS = [
    (group, field.name)
    for group, kind in GROUPS.items()
    for field in dataclasses.fields(kind)
    if str(field.type).startswith("float")
]


def value_of(config: object, key: str) -> Any:
    """The value at a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


@pytest.mark.parametrize(
    ("kind", "arguments", "key", "expected"),
    REFUSED,
    ids=[f"{case[2]}={list(case[1].values())[-1]!r:.20}" for case in REFUSED],
)
def test_a_refusal_names_the_key_what_was_given_and_what_was_expected(
    kind: type, arguments: dict[str, Any], key: str, expected: str
) -> None:
    """Law: every range check raises InputError(key, given, expected)."""
    with pytest.raises(InputError) as caught:
        kind(**arguments)
    message = str(caught.value)
    given = arguments.get(key.rpartition(".")[2], 12)
    assert message.startswith(f"{key}: given {given!r}, expected ")
    assert expected in message


@pytest.mark.parametrize(("group", "name"), FLOATS)
@pytest.mark.parametrize("value", [NAN, -INF])
def test_no_number_may_be_nan_or_minus_infinity(group: str, name: str, value: float) -> None:
    with pytest.raises(InputError, match=re.escape(f"{group}.{name}")):
        GROUPS[group](**{name: value})


@pytest.mark.parametrize(
    ("group", "name"),
    [case for case in FLOATS if case != ("schedule", "every_epochs")],
)
def test_no_number_may_be_infinite(group: str, name: str) -> None:
    """Law: only schedule.every_epochs has a use for infinity, which is `never`."""
    with pytest.raises(InputError, match=re.escape(f"{group}.{name}")):
        GROUPS[group](**{name: INF})


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (DataConfig, {"workers": 0, "prefetch_factor": 1, "placement": "device"}),
        (OptimizerConfig, {"momentum": 0.0, "betas": (0.0, 0.0), "weight_decay": 0.0}),
        (OptimizerConfig, {"momentum": 0.9, "nesterov": True}),
        (ScheduleConfig, {"final_fraction": 0.0, "initial_fraction": 1.0, "gamma": 1.0}),
        (TrainConfig, {"epochs": 1, "max_steps": 1, "global_batch_size": 1, "micro_batch_size": 1}),
        (TrainConfig, {"global_batch_size": 60, "micro_batch_size": 60, "label_smoothing": 0.0}),
        (ParallelConfig, {"shards": 1, "threads": 1}),
        (CheckpointConfig, {"every_steps": None, "every_epochs": None, "keep": 2}),
        (EvaluateConfig, {"every_epochs": None, "batch_size": 1}),
        (RunConfig, {"seed": 2**63 - 1}),
        (RunConfig, {"seed": 0, "name": "a.b c"}),
        (
            RunConfig,
            {
                "train": TrainConfig(global_batch_size=12),
                "parallel": ParallelConfig(reduction="exact", shards=4),
            },
        ),
        (
            RunConfig,
            {
                "train": TrainConfig(global_batch_size=12),
                "parallel": ParallelConfig(reduction="fast", shards=8),
            },
        ),
    ],
)
def test_the_ends_of_every_range_belong_to_it(kind: type, arguments: dict[str, Any]) -> None:
    config = kind(**arguments)
    assert {name: getattr(config, name) for name in arguments} == arguments


def test_powersgd_is_refused_where_steps_are_skipped() -> None:
    """It would feed back gradients that are not finite."""
    parallel = ParallelConfig(compression="powersgd")
    RunConfig(parallel=parallel, precision=PrecisionConfig(dtype="bf16"))
    with pytest.raises(InputError, match=r"parallel\.compression: given 'powersgd', expected none"):
        RunConfig(parallel=parallel, precision=PrecisionConfig(dtype="fp16"))


def test_a_wrong_micro_batch_is_answered_with_the_sizes_that_fit() -> None:
    with pytest.raises(InputError, match=r"choose one of 1, 2, 3, 4, 6, 12\."):
        TrainConfig(global_batch_size=12, micro_batch_size=5)


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    config = RunConfig()
    for group in [config, *(getattr(config, name) for name in GROUPS)]:
        name = dataclasses.fields(group)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(group, name, getattr(group, name))


# -- identity ------------------------------------------------------------------------------------


def changed(config: Any, key: str, value: Any) -> Any:
    """The config with one dotted key set."""
    name, _, rest = key.partition(".")
    child = changed(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: child})


def test_every_key_is_classified_as_maths_or_execution() -> None:
    """A new key fails here until this file says whether it changes the run or only how it runs."""
    assert sorted([*MATHS, *EXECUTION]) == sorted(flatten(RunConfig()))


@pytest.mark.parametrize("key", MATHS)
def test_a_key_of_the_maths_changes_the_digest(key: str) -> None:
    start = changed(RunConfig(), "model.weights", "w.pt")  # some keys are about them
    other = changed(start, key, MATHS[key])
    assert digest(other) != digest(RunConfig())
    assert key in identity(other)


@pytest.mark.parametrize("key", EXECUTION)
def test_a_key_of_the_execution_does_not_change_the_digest(key: str) -> None:
    other = changed(RunConfig(), key, EXECUTION[key])
    assert flatten(other) != flatten(RunConfig())
    assert digest(other) == digest(RunConfig())
    assert key not in identity(other)


def test_a_group_speaks_for_every_key_under_it() -> None:
    assert not defines_mathematics("logging")
    assert not defines_mathematics("logging.wandb")
    assert not defines_mathematics("logging.wandb.tags")
    assert defines_mathematics("parallel"), "some of its keys do"


@pytest.mark.parametrize("key", ["", "lr", "optimizer.lrr", "logging.lr", "seed.of"])
def test_nothing_is_said_of_a_key_that_no_config_has(key: str) -> None:
    with pytest.raises(KeyError):
        defines_mathematics(key)


def test_flatten_gives_every_leaf_once_and_survives_json() -> None:
    """Law: flatten is total over known_keys, and its values are what a manifest can hold."""
    config = RunConfig(model=ModelConfig(kwargs={"hidden": [8], "inner": {"a": 1}}))
    flat = flatten(config)
    groups = {key for key in known_keys() if any(k.startswith(f"{key}.") for k in known_keys())}
    assert set(flat) == set(known_keys()) - groups
    assert flat["model.kwargs"] == {"hidden": [8], "inner": {"a": 1}}
    assert flat["optimizer.betas"] == [0.9, 0.999]
    assert all(flat[key] == value_of(config, key) for key in set(flat) - {"optimizer.betas"})
    assert json.loads(json.dumps(flat)) == flat


def test_the_digest_is_sha256_and_ignores_the_order_of_model_arguments() -> None:
    first, second = (
        RunConfig(model=ModelConfig(kwargs=kwargs))
        for kwargs in ({"a": 1, "b": [2, 3]}, {"b": [2, 3], "a": 1})
    )
    assert digest(first) == digest(second)
    assert re.fullmatch("[0-9a-f]{64}", digest(first))
