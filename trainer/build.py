"""Composition root: RunConfig + Runtime -> Parts. The only place that knows every class."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.errors import InputError
from configs.identity import flatten
from configs.schema import RunConfig
from data.acquire import acquire
from data.augment import Augment, build_augment
from data.catalog import CATALOG
from data.datasets import Datasets, Normalize, load_datasets
from data.loader import Loader, build_loader
from data.sampler import Plan
from trainer.checkpoint import load_checkpoint
from trainer.collectives import broadcast_object, together
from trainer.ema import EMA
from trainer.engine import NativeEngine, flatten_parameters
from trainer.flat import FlatParameters
from trainer.gradients import GradientLog
from trainer.loop import Parts
from trainer.meter import Meter, Stopwatch
from trainer.models import build_model
from trainer.optim import build_optimizer
from trainer.passes import LossModule
from trainer.precision import Precision, build_precision
from trainer.preempt import StopRequest
from trainer.profiling.profiler import build_profiler
from trainer.rng import seed_stream
from trainer.run_directory import Resume, RunDirectory, describe_environment
from trainer.runtime import Runtime, use_training_timeout
from trainer.saver import Saver
from trainer.schedule import Schedule, build_schedule
from trainer.sink_console import build_console
from trainer.sink_jsonl import JsonlSink
from trainer.sink_tensorboard import TensorBoardSink, check_tensorboard
from trainer.sink_wandb import WandbSink
from trainer.sinks import RunFacts, Sink, Sinks
from trainer.state import Progress, Stateful, restore
from trainer.step import TrainStep

log = logging.getLogger("convoy")


@dataclass(frozen=True, slots=True)
class Local:
    """What a rank can build, and refuse, without talking to the others."""

    data: Datasets
    plan: Plan
    loader: Loader
    model: nn.Module
    flat: FlatParameters | None
    optimizer: torch.optim.Optimizer
    normalize: Normalize
    augment: Augment
    precision: Precision
    schedule: Schedule
    total_windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What a run computes with, and no run directory: enough to try something out on."""

    config: RunConfig
    runtime: Runtime
    data: Datasets
    plan: Plan
    loader: Loader
    state: Stateful
    step: TrainStep


def assemble(config: RunConfig, runtime: Runtime) -> Workbench:
    """The parts that compute, with their initial weights; every rank calls it.

    Writes nothing, and looks at no run directory.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
    """
    local = _prepare(config, runtime)
    use_training_timeout(runtime, config.parallel)
    state = build_state(config, runtime, local)
    return Workbench(
        config=config,
        runtime=runtime,
        data=local.data,
        plan=local.plan,
        loader=local.loader,
        state=state,
        step=_build_step(config, runtime, local, state),
    )


def build(config: RunConfig, runtime: Runtime, stop: StopRequest) -> Parts:
    """Assemble a run; every rank calls it, inside the process group.

    Nothing is written before every rank has built its part.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
    """
    local = _prepare(config, runtime)
    directory = RunDirectory(config)
    resume = broadcast_object(
        runtime,
        together(
            runtime,
            lambda: _decide(config, directory) if runtime.is_main else Resume(None, 0, []),
        ),
    )
    use_training_timeout(runtime, config.parallel)
    state = build_state(config, runtime, local)
    notes = together(runtime, lambda: continue_from(config, resume.checkpoint, state))
    sinks = together(
        runtime, lambda: _open_outputs(config, runtime, local, directory, resume, notes)
    )
    watch = Stopwatch()
    return Parts(
        config=config,
        runtime=runtime,
        plan=local.plan,
        loader=local.loader,
        num_test=len(local.data.test),
        normalize=local.normalize,
        step=_build_step(config, runtime, local, state),
        state=state,
        total_windows=local.total_windows,
        sinks=sinks,
        directory=directory,
        saver=Saver(directory.checkpoints, keep=config.checkpoint.keep),
        stop=stop,
        gradients=GradientLog(state.engine.module, config.logging.gradients),
        profiler=build_profiler(
            config.profile,
            folder=directory.path / "profile",
            runtime=runtime,
            precision=local.precision,
            progress=state.progress,
            watch=watch,
        ),
        watch=watch,
    )


def _prepare(config: RunConfig, runtime: Runtime) -> Local:
    """Data and model on every rank, or one refusal on all of them."""
    together(runtime, lambda: _acquire(config, runtime))
    return together(
        runtime,
        lambda: build_local(config, runtime, load_datasets(config.data, seed=config.seed)),
    )


def _acquire(config: RunConfig, runtime: Runtime) -> None:
    """One process per node looks for the data, and downloads it if it must."""
    if runtime.local_rank == 0 and config.data.dataset in CATALOG:
        facts = CATALOG[config.data.dataset]
        acquire(facts, config.data.root, download=config.data.download)


def build_local(config: RunConfig, runtime: Runtime, data: Datasets) -> Local:
    """The parts of one rank, which need not be one of the process group's.

    Raises:
        InputError: If this rank's part of the run cannot be had.
    """
    precision = build_precision(config.precision, runtime.device)
    plan = Plan(
        num_samples=len(data.train),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=config.seed,
        drop_last=config.data.drop_last,
        shards=config.parallel.shards if config.parallel.reduction == "exact" else None,
    )
    model = build_model(
        config.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        seed=config.seed,
    ).to(runtime.device)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model.name", given=config.model.name, expected="trainable parameters")
    check_batch_norm(model, plan)
    flat = flatten_parameters(model, config.compile, precision, runtime.device)
    total_windows = config.train.epochs * plan.steps_per_epoch
    return Local(
        data=data,
        plan=plan,
        loader=build_loader(config.data, data.train, data.test, plan=plan, device=runtime.device),
        model=model,
        flat=flat,
        optimizer=build_optimizer(
            config.optimizer,
            model.parameters(),
            runtime.device,
            scaled=precision.scaler.is_enabled(),
            flat=flat,
        ),
        normalize=Normalize(data, runtime.device),
        augment=build_augment(config.data.augment, data.input_shape),
        precision=precision,
        schedule=build_schedule(
            config.schedule,
            peak=config.optimizer.lr,
            total_steps=min(total_windows, config.train.max_steps or total_windows),
            steps_per_epoch=plan.steps_per_epoch,
        ),
        total_windows=total_windows,
    )


def check_batch_norm(model: nn.Module, plan: Plan) -> None:
    """Batch statistics of one sample do not exist: say so now, not at the end of the epoch."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if normed and plan.smallest_micro_batch < 2:
        raise InputError(
            "batch normalisation",
            given=f"a micro-batch of {plan.smallest_micro_batch} samples on rank {plan.rank}",
            expected="2 or more in every micro-batch, also in the last one of an epoch",
            remedy="Change train.global_batch_size, train.micro_batch_size or parallel.shards, or "
            "use --data.drop_last true.",
        )


def build_state(config: RunConfig, runtime: Runtime, local: Local) -> Stateful:
    """Wrap the model for its ranks; the average is copied before that, from the raw module."""
    decay = config.train.ema_decay
    ema = EMA(local.model, decay) if decay is not None else None
    loss = LossModule(
        local.model,
        normalize=local.normalize,
        precision=local.precision,
        label_smoothing=config.train.label_smoothing,
    )
    engine = NativeEngine(
        loss,
        flat=local.flat,
        runtime=runtime,
        parallel=config.parallel,
        compile_=config.compile,
        plan=local.plan,
        example=torch.as_tensor(local.data.train[0][0])[None],
    )
    # The weights came from one stream on every rank; dropout must not.
    seed_stream(config.seed, "rank", runtime.rank)
    return Stateful(
        engine=engine,
        optimizer=local.optimizer,
        precision=local.precision,
        ema=ema,
        meter=Meter(),
        progress=Progress(),
        seed=config.seed,
        runtime=runtime,
    )


def _build_step(config: RunConfig, runtime: Runtime, local: Local, state: Stateful) -> TrainStep:
    return TrainStep(
        engine=state.engine,
        optimizer=local.optimizer,
        schedule=local.schedule,
        precision=local.precision,
        augment=local.augment,
        ema=state.ema,
        meter=state.meter,
        progress=state.progress,
        clip_norm=config.train.clip_norm,
    )


def _decide(config: RunConfig, directory: RunDirectory) -> Resume:
    """What to continue from, decided under the lock: nobody may save in between."""
    check_tensorboard(config.logging)
    directory.claim()
    return directory.decide_resume(config)


def continue_from(config: RunConfig, checkpoint: Path | None, state: Stateful) -> list[str]:
    """Load a checkpoint into the finished parts; returns lines for the log."""
    if checkpoint is None:
        return []
    weights, trainer = load_checkpoint(checkpoint)
    notes = restore(state, weights, trainer, exact=config.parallel.reduction == "exact")
    return [f"continuing from {checkpoint} (step {state.progress.step})", *notes]


def _open_outputs(
    config: RunConfig,
    runtime: Runtime,
    local: Local,
    directory: RunDirectory,
    resume: Resume,
    notes: list[str],
) -> Sinks:
    """On rank 0: the run directory, its records, and whoever else is told of them."""
    if not runtime.is_main:
        return Sinks([])
    for note in [*directory.open(config, resume), *notes]:
        log.info(note)
    environment = describe_environment(runtime)
    directory.write_environment(environment)
    directory.write_model(local.data.facts())
    wanted: list[Sink] = [JsonlSink(), *build_console(config.logging.progress)]
    if config.logging.tensorboard:
        wanted.append(TensorBoardSink())
    if config.logging.wandb.mode != "disabled":
        wanted.append(WandbSink(config.logging.wandb, config.name))
    sinks = Sinks(wanted)
    sinks.start(
        RunFacts(
            directory=directory.path,
            config=flatten(config),
            environment=environment,
            total_steps=local.schedule.total_steps,
            samples_per_step=config.train.global_batch_size,
            first_step=resume.step,
        )
    )
    return sinks
