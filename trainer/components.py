"""What a rank builds by itself, and may refuse, before ranks come together."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema import RunConfig
from data.augment import Augment, build_augment
from data.collate import choose_collate
from data.datasets import Datasets
from data.loading.loader import Loader, build_loader, free_bytes, placement
from data.loading.order import Plan
from data.loading.user_order import UserOrder, choose_order
from data.normalize import Normalize
from data.samples import Example
from data.structures import tensors
from trainer.backward.compiling import check_compiler
from trainer.backward.explicit.onednn import keeps_upright
from trainer.backward.explicit.plain_layers import describe
from trainer.engines.accelerate_config import check_accelerate
from trainer.execution import decide
from trainer.networks.calling import Call
from trainer.networks.deferred import Deferred, NotDeferred
from trainer.objective.model_loss import call_for
from trainer.objective.selection import Selection, choose_selection
from trainer.objective.task import Task
from trainer.objective.tasks import build_task
from trainer.optim.flat import FlatKernel, FlatParameters
from trainer.optim.fused import DirectKernel, Kernel
from trainer.optim.optimizers import build_optimizer, check_gradients
from trainer.optim.parameter_groups import group_parameters
from trainer.optim.schedule import Schedule, build_schedule
from trainer.ranks.precision import Precision, build_precision
from trainer.ranks.runtime import Runtime
from trainer.run_model import build_run_model, try_out
from trainer.ways import Execution, Subject

log = logging.getLogger("convoy")


@dataclass(frozen=True, slots=True)
class Components:
    """What a rank can build, and refuse, without talking to the others."""

    config: RunConfig
    data: Datasets
    plan: Plan
    loader: Loader
    task: Task
    selection: Selection
    example: Example
    model: nn.Module
    deferred: Deferred | None
    """What gives a model on meta its initial weights; None: it has them."""
    call: Call
    subject: Subject
    execution: Execution
    flat: FlatParameters | None
    optimizer: torch.optim.Optimizer
    kernel: torch.optim.Optimizer | Kernel
    """What takes the optimizer's steps: itself, or a kernel in its place."""
    normalize: Normalize
    augment: Augment
    precision: Precision
    schedule: Schedule
    total_global_batches: int

    def forward(self, module: nn.Module, size: int) -> Tensor:
        """The sum of all outputs of a copy of the model for `size` samples, with a graph."""
        batch = self.example.batch(size).to(next(module.parameters()).device)
        with self.precision.autocast():
            outputs = self.call(module, self.normalize(batch.inputs), batch.targets)
        return torch.stack([t.float().sum() for t in tensors(outputs)]).sum()

    def on(self, runtime: Runtime) -> Components:
        """The same parts for a run on other ranks, such as this one alone, outside of any group."""
        subject = replace(self.subject, world_size=runtime.world_size, in_group=False)
        return replace(self, subject=subject, execution=decide(self.config, subject))


def build_components(
    config: RunConfig,
    runtime: Runtime,
    data: Datasets,
    *,
    among_ranks: bool = False,
    free: int | None = None,
) -> Components:
    """The parts of one rank, which need not be one of the process group's.

    Args:
        config: The run.
        runtime: This rank.
        data: What it is trained on.
        among_ranks: Whether the ranks are there: a model that they share by FSDP is then built on
            meta where that is possible, so that none of them ever holds all of it.
        free: `least_free_bytes`; None: what this rank's own device has.

    Raises:
        InputError: If this rank's part of the run cannot be had.
    """
    shared = config.parallel.strategy == "fsdp" and runtime.world_size > 1
    if among_ranks and shared and config.model.weights is None:
        try:
            return _build_components(config, runtime, data, free=free, deferred=True)
        except NotDeferred as reason:
            log.info(f"every rank builds the whole model before it keeps its part: {reason}")
    return _build_components(config, runtime, data, free=free, deferred=False)


def _build_components(
    config: RunConfig, runtime: Runtime, data: Datasets, *, free: int | None, deferred: bool
) -> Components:
    if config.parallel.engine != "native":
        check_accelerate(config, runtime, os.environ)
    precision = build_precision(config.precision, runtime.device)
    example = Example(data.train[0], choose_collate(config.data))
    subject, later = _subject(config, runtime, data, example, free=free, deferred=deferred)
    model, plan, task = subject.model, subject.plan, subject.task
    call = call_for(task, model, example, config.model.forward)
    normalize = Normalize(data, runtime.device)
    try_out(config, model, call, normalize, task, data, example)
    execution = decide(config, subject)
    flat, optimizer, kernel = build_optimizer_and_kernel(
        config, runtime, model, precision, execution
    )
    if later and optimizer.state:
        raise NotDeferred(f"{type(optimizer).__name__} looks at the weights before the first step")
    total_global_batches = plan.epoch_schedule.global_batches_before(config.train.epochs)
    selection = choose_selection(task, config.evaluate.best, config.evaluate.best_mode)
    return Components(
        config=config,
        data=data,
        plan=plan,
        task=task,
        selection=selection,
        example=example,
        loader=build_loader(
            config.data,
            data.train,
            data.held_out,
            plan=plan,
            device=runtime.device,
            on_device=execution.resident,
        ),
        model=model,
        deferred=later,
        call=call,
        subject=subject,
        execution=execution,
        flat=flat,
        optimizer=optimizer,
        kernel=kernel,
        normalize=normalize,
        augment=subject.augment,
        precision=precision,
        schedule=build_schedule(
            config.schedule,
            optimizer=optimizer,
            peak=config.optimizer.lr,
            total_steps=min(total_global_batches, config.train.max_steps or total_global_batches),
            epoch_schedule=plan.epoch_schedule,
            selection=selection,
            evaluate_every=config.evaluate.every_epochs,
        ),
        total_global_batches=total_global_batches,
    )


def _subject(
    config: RunConfig,
    runtime: Runtime,
    data: Datasets,
    example: Example,
    *,
    free: int | None,
    deferred: bool,
) -> tuple[Subject, Deferred | None]:
    """What is trained, on which samples, and where; and what its weights will be, if deferred."""
    task = build_task(
        config.task,
        label_smoothing=config.train.label_smoothing,
        vocabulary=data.vocabulary,
    )
    if runtime.device.type == "mps" and config.task.name != "classification":
        raise InputError(
            "task.name",
            given=config.task.name,
            expected="classification on mps",
            remedy="Scores of other tasks are added in float64, which Apple's GPUs lack: use "
            "--parallel.device cpu.",
        )
    targets = example.batch().targets
    task.check_target(targets[0] if isinstance(targets, Tensor) and targets.dim() else targets)
    order = choose_order(config.data, data.train, config.seed)
    plan = build_plan(config, runtime, order.size if order else len(data.train), order)
    model, later = build_run_model(config, runtime, data, plan, deferred=deferred)
    classes = data.num_classes if task.name == "classification" else None
    augment = build_augment(config.data.augment, data.input_shape, classes)
    if config.data.augment.mixup or config.data.augment.cutmix:
        task = replace(task, label_smoothing=None)  # passes written out know whole classes only
    subject = Subject(
        model=model,
        task=task,
        augment=augment,
        plan=plan,
        input_shape=data.input_shape,
        device=runtime.device,
        world_size=runtime.world_size,
        in_group=runtime.in_group,
        resident=placement(
            config.data,
            [data.train, *data.held_out.values()],
            free_bytes(runtime.device) if free is None else free,
        ),
    )
    return subject, later


def build_optimizer_and_kernel(
    config: RunConfig,
    runtime: Runtime,
    model: nn.Module,
    precision: Precision,
    execution: Execution,
) -> tuple[FlatParameters | None, torch.optim.Optimizer, torch.optim.Optimizer | Kernel]:
    """The optimizer, and what takes its steps; over a flat buffer if the passes are written out."""
    flat = None
    if execution.kernel == "flat":
        shapes = describe(model)
        assert shapes is not None
        parameters = [p for shape in shapes for p in shape.linear.parameters()]
        flat = FlatParameters(parameters, keeps_upright)
    if execution.compiled:
        check_compiler(runtime.device)
    optimizer = build_optimizer(
        config.optimizer,
        group_parameters(model, config.optimizer),
        runtime.device,
        scaled=precision.scaler.is_enabled(),
    )
    kernel: torch.optim.Optimizer | Kernel = optimizer
    if flat is not None:
        kernel = FlatKernel(optimizer, flat)
    elif execution.kernel == "direct":
        kernel = DirectKernel(optimizer)
    check_gradients(model, optimizer, config.parallel)
    if config.parallel.strategy == "fsdp" and runtime.world_size > 1:
        from trainer.engines.fsdp import check_sharding

        check_sharding(config, optimizer, model)
    return flat, optimizer, kernel


def build_plan(
    config: RunConfig, runtime: Runtime, num_samples: int, order: UserOrder | None = None
) -> Plan:
    """Who trains on which of the training samples, as this rank sees it."""
    if runtime.world_size > num_samples:
        raise InputError(
            "number of ranks",
            given=runtime.world_size,
            expected=f"at most the {num_samples} training samples",
        )
    return Plan(
        num_samples=num_samples,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=config.seed,
        drop_last=config.data.drop_last,
        batch_schedule=config.train.batch_stages,
        user_order=order,
        shards=config.parallel.shards if config.parallel.reduction == "exact" else None,
        # Then every forward pass is a collective.
        even=config.parallel.strategy == "fsdp" or config.parallel.sync_batch_norm,
    )
