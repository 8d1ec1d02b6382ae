"""The model of a run: built, whole or without memory, and found to suit its data and its plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from configs.errors import InputError, one_line
from configs.imports import is_import_path
from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import Example
from data.structures import map_tensors
from trainer.checkpoints.saved_state import check_module
from trainer.networks.blocks import check_blocks
from trainer.networks.calling import Call
from trainer.networks.deferred import META, Deferred, NotDeferred
from trainer.networks.models import build_model
from trainer.networks.module_state import check_buffers
from trainer.objective.check_outputs import check_classes, check_loss, check_outputs
from trainer.objective.task import Task
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime

LEAST_TRIED, MOST_TRIED = 3, 32
"""Samples that a loss of the user's is tried on before the first step."""


def build_run_model(
    config: RunConfig, runtime: Runtime, data: Datasets, plan: Plan, *, deferred: bool
) -> tuple[nn.Module, Deferred | None]:
    """On the device, with its initial weights, and fit to be trained by this plan.

    Args:
        config: The run.
        runtime: This rank.
        data: What it is trained on.
        plan: Who trains on what.
        deferred: Build it on meta instead, with what gives it these weights later.

    Raises:
        InputError: If it does not suit the plan, the device or the number of ranks.
        NotDeferred: If it cannot be built on meta.
    """

    def build() -> nn.Module:
        return build_model(
            config.model,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            seed=config.seed,
        )

    later = Deferred(build, lambda: seed_stream(config.seed, "weights")) if deferred else None
    model = later.module if later else build().to(runtime.device)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model.name", given=config.model.name, expected="trainable parameters")
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(
                f"weight {name} of the model",
                given=str(parameter.dtype).removeprefix("torch."),
                expected="real numbers",
                remedy="Keep real and imaginary parts in two, or torch.view_as_complex one.",
            )
    check_batch_norm(model, plan)
    check_module(model)
    check_buffers(model, runtime)
    check_blocks(model, config.parallel, runtime.device, runtime.world_size)
    return model, later


def try_out(
    config: RunConfig,
    model: nn.Module,
    call: Call,
    normalize: Normalize,
    task: Task,
    data: Datasets,
    example: Example,
) -> None:
    """Refuse a model, a loss and labels that do not suit each other, before the first step.

    A model on meta has shapes to suit, and gives zeros.

    Raises:
        InputError: If they do not.
        NotDeferred: If a model on meta cannot be tried.
    """
    on_meta = next(model.parameters()).is_meta
    call = _giving_zeros(call) if on_meta else call
    try:
        check_outputs(model, call, normalize, example.batch(), task)
        own = config.task.loss is not None or is_import_path(config.task.name) or task.takes_targets
        if own and len(data.train) >= LEAST_TRIED:
            tried = [data.train[i] for i in range(min(len(data.train), MOST_TRIED))]
            check_loss(model, call, normalize, tried, example.collate, task)
        check_classes({"train": data.train, **data.held_out}, data.num_classes, task)
    except Exception as error:
        if not on_meta:
            raise
        # A model that is built whole says what is wrong.
        reason = one_line(error, named=True)
        raise NotDeferred(reason) from None


def _giving_zeros(call: Call) -> Call:
    """Calls a model on meta with shapes, and gives zeros in the shapes of its outputs."""

    def shaped(module: nn.Module, inputs: Any, targets: Any) -> Any:
        def zeros(tensor: Tensor) -> Tensor:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

        def to_meta(tensor: Tensor) -> Tensor:
            return tensor.to(META)

        outputs = call(module, map_tensors(to_meta, inputs), map_tensors(to_meta, targets))
        return map_tensors(zeros, outputs)

    return shaped


def check_batch_norm(model: nn.Module, plan: Plan) -> None:
    """Batch statistics of one sample do not exist: say so now, not at the end of the epoch."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    normed = any(norm.training for norm in norms)  # one that is frozen has its statistics
    smallest = plan.micro_batch_sizes[0]
    if normed and smallest < 2:
        raise InputError(
            "batch normalisation",
            given=f"a micro-batch of {smallest} samples on rank {plan.rank}",
            expected="2 or more in every micro-batch, also in the last one of an epoch",
            remedy="Change train.global_batch_size, train.micro_batch_size or parallel.shards, or "
            "use --data.drop_last true.",
        )
