"""What a program passes to `fit` -> config keys, and the objects that they refer to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from configs import strange_kwargs
from configs.errors import InputError
from configs.given import PREFIX, Given
from configs.keys import is_group
from configs.own_modules import name_in_repository
from data.loading.workers import borrowed_rng
from data.samples import Datasets
from data.structures import as_tensor_or_none, split
from trainer.fingerprints import (
    digest_of,
    digest_of_data,
    digest_of_model,
    digest_of_weights,
    import_path,
)
from trainer.networks.copying import copied
from trainer.objective.task import Task

SHORT = {
    "loss": "task.loss",
    "metrics": "task.metrics",
    "lr": "optimizer.lr",
    "epochs": "train.epochs",
    "batch_size": "train.global_batch_size",
}
"""Names of `fit` for keys that are wanted most."""
NAMES = {group: f"{group}.{key}" for group, key in strange_kwargs.NAMES.items()}
"""What a group is called by, where `fit` is given something else than its keys."""
TASKS = {
    F.mse_loss: "regression",
    F.l1_loss: "regression",
    F.smooth_l1_loss: "regression",
    F.huber_loss: "regression",
    F.binary_cross_entropy_with_logits: "multilabel",
    nn.MSELoss: "regression",
    nn.L1Loss: "regression",
    nn.SmoothL1Loss: "regression",
    nn.HuberLoss: "regression",
    nn.BCEWithLogitsLoss: "multilabel",
}
"""Tasks whose targets and metrics go with a loss of torch's."""
DIGITS = 12
"""Of a digest in a reference."""


@dataclass(slots=True)
class Handed:
    """The arguments of a call, taken apart."""

    keys: dict[str, Any] = field(default_factory=dict)
    """As in a YAML file, with references in place of objects."""
    objects: dict[str, Given] = field(default_factory=dict)
    """What the references lead to."""
    model: nn.Module | None = None
    """The module that was passed, if it was not what makes one."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Those of `fit` by name; see `put`."""
        handed = cls()
        for key, value in arguments.items():
            handed.put(key, value)
        return handed

    def put(self, key: str, value: Any) -> None:
        """Take one argument: a short name, a key with its dots, or a group of keys.

        Raises:
            InputError: If it is there already, or cannot be what is trained with.
        """
        key = SHORT.get(key, key)
        sets = key == "data" and isinstance(value, Mapping) and "train" in value
        if isinstance(value, Mapping) and is_group(key) and not sets:
            for name, item in value.items():
                self.put(f"{key}.{name}", item)
            return
        if is_group(key) and key not in NAMES:
            raise InputError(key, given=value, expected="a mapping of keys under it")
        key = NAMES.get(key, key)
        *groups, leaf = key.split(".")
        place = self.keys
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise InputError(key, given=value, expected=f"a key that {group} has")
        if leaf in place:
            raise InputError(key, given=value, expected="one value: it is given twice")
        place[leaf] = self.refer(key, value) if sets else self.text(key, value)

    def text(self, key: str, value: Any) -> Any:
        """The value as a config has it: what is no text or number as a reference."""
        if value is None or isinstance(value, str | int | float):
            return value
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Mapping):
            return {name: self.text(f"{key}.{name}", item) for name, item in value.items()}
        if isinstance(value, list | tuple) and key != "data.dataset":
            return [self.text(key, item) for item in value]
        path = None if ".kwargs." in key else import_path(value)
        return path or self.refer(key, value)

    def refer(self, key: str, value: Any) -> str:
        """Keep an object, and return the reference to it."""
        given, digest = adopt(key, value)
        if key == "model.name" and isinstance(value, nn.Module):
            self.model = value
        first = value[0] if isinstance(value, list | tuple) and value else value
        name = getattr(first, "__name__", type(first).__name__)
        label = re.sub(r"\W+", "", name)
        reference, number = f"{PREFIX}{label}@{digest[:DIGITS]}", 1
        while reference in self.objects:  # others of which no difference is known
            number += 1
            reference = f"{PREFIX}{label}{number}@{digest[:DIGITS]}"
        kind = name_in_repository(f"{type(value).__module__}.{type(value).__qualname__}")
        facts = {"key": key, "type": kind}
        self.objects[reference] = Given(given.value, facts | {"sha256": digest} | given.facts)
        return reference


def task_of(loss: Any, data: Any) -> str | None:
    """The task that goes with a loss of torch's, or with targets that are no classes; None: the
    default, which tells classes apart."""
    kind = type(loss) if isinstance(loss, nn.Module) else loss
    for known, task in TASKS.items():
        if known is kind:
            return task
    if loss is None or not isinstance(data, list | tuple):
        return None
    try:
        with borrowed_rng():
            target = as_tensor_or_none(split(data[0][0])[1])
    except Exception:  # whoever trains on it says what is wrong
        return None
    a_class = target is not None and not target.ndim and not target.is_floating_point()
    return None if a_class else "loss"


def adopt(key: str, value: Any) -> tuple[Given, str]:
    """What stands in for an import path, and the digest of what was given.

    Raises:
        InputError: With what is expected instead.
    """
    if key == "model.name" and isinstance(value, nn.Module):
        return _model(value), digest_of_model(value)
    if key == "data.dataset" and isinstance(value, DataLoader):
        raise InputError(
            "data",
            given="a DataLoader",
            expected="data sets: (train, test), or (train, validation, test)",
            remedy="Order, batches and workers are the run's: pass loader.dataset, batch_size=... "
            "and data={'dataset': ..., 'workers': ...}.",
        )
    has_samples = hasattr(value, "__getitem__") or hasattr(value, "__iter__")
    if key == "data.dataset" and (has_samples or isinstance(value, Datasets)):
        return Given(lambda: value), digest_of_data(value)
    if key == "optimizer.name" and isinstance(value, torch.optim.Optimizer):
        raise InputError(
            "optimizer",
            given=f"a {type(value).__name__} over the parameters of another module",
            expected="its name or class, or a function (parameters, config, fused) that makes it: "
            "it is made over the copy that is trained",
            remedy=f"Pass optimizer=torch.optim.{type(value).__name__}, lr=..., and the rest as "
            "**{'optimizer.kwargs': {...}}.",
        )
    if isinstance(value, Task):
        return Given(lambda: value), digest_of(value)
    if not callable(value) and key in NAMES.values():
        raise InputError(
            key,
            given=type(value).__name__,
            expected="a name, an import path, or an object as docs/your_own.md has it",
        )
    return Given(value), digest_of(value)


def _model(module: nn.Module) -> Given:
    """What makes a copy of a module, so that it stays as it is, and a second run begins there.

    Raises:
        InputError: If it is wrapped already.
    """
    kind = type(module).__name__
    if kind in ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel"):
        raise InputError(
            "model",
            given=f"a {kind}",
            expected="the module inside it",
            remedy="Compiling and sharing among ranks are the run's: compile={'enabled': True}, "
            "parallel={'strategy': 'fsdp'}.",
        )

    return Given(lambda: copied(module), {"weights_sha256": digest_of_weights(module)})
