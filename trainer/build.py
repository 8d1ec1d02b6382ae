"""Composition root: RunConfig + Runtime -> Run. The only place that knows every class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import Loader
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.auto_batch import fit_micro_batch
from trainer.backward.autograd import LossModule
from trainer.checkpointer import Checkpointer
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.checkpoints.state import Progress, RunState
from trainer.components import Components, build_components
from trainer.cuda_graphs.recorded_steps import RecordedSteps
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.due import End
from trainer.engines.accelerate import AccelerateEngine, build_sharded
from trainer.engines.engine import Engine
from trainer.engines.native import NativeEngine
from trainer.engines.unused import decide_unused
from trainer.evaluator import Evaluator
from trainer.loop import Run
from trainer.networks.blocks import prepare_blocks
from trainer.networks.trained_parts import TrainedParts
from trainer.objective.meter import Meter
from trainer.optim.average import Average, build_average
from trainer.outputs import (
    build_log,
    continue_from,
    decide_resume,
    identify_weights,
    normalised_as_before,
    open_outputs,
    start_from,
)
from trainer.profiling.profiler import build_profiler
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.load_data import load_data
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime, use_training_timeout
from trainer.ranks.stop_signals import StopRequest
from trainer.records.sinks import Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.step import Steps, TrainStep


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What a run computes with, and no run directory: enough to try something out on."""

    config: RunConfig
    runtime: Runtime
    data: Datasets
    plan: Plan
    loader: Loader
    state: RunState
    step: TrainStep


def assemble(config: RunConfig, runtime: Runtime) -> Workbench:
    """The parts that compute, with their initial weights; every rank calls it.

    Writes nothing, and looks at no run directory.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
    """
    config, components = _prepare(config, runtime)
    use_training_timeout(runtime, config.parallel)
    raise_on_all_ranks(runtime, lambda: start_from(config, components))
    state = build_state(config, runtime, components)
    return Workbench(
        config=config,
        runtime=runtime,
        data=components.data,
        plan=components.plan,
        loader=components.loader,
        state=state,
        step=_build_step(config, runtime, components, state),
    )


def build(
    config: RunConfig, runtime: Runtime, stop: StopRequest, directory: RunDirectory | None = None
) -> Run:
    """Assemble a run: on every rank, in the process group; nobody writes before all are built.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
    """
    config, components = _prepare(config, runtime)
    (directory := directory or RunDirectory(config)).identify(config)
    resume = broadcast_object(
        runtime,
        raise_on_all_ranks(
            runtime,
            lambda: decide_resume(config, directory) if runtime.is_main else Resume(None, 0, []),
        ),
    )
    use_training_timeout(runtime, config.parallel)
    components = normalised_as_before(components, resume)
    if resume.checkpoint is None:
        raise_on_all_ranks(runtime, lambda: start_from(config, components))
    state = build_state(config, runtime, components)
    finite = FiniteCheck(state)
    notes = raise_on_all_ranks(runtime, lambda: continue_from(config, resume.checkpoint, state))
    sinks = raise_on_all_ranks(
        runtime,
        lambda: open_outputs(config, runtime, components, directory, resume, notes, state.progress),
    )
    return _assemble_run(config, runtime, components, state, finite, directory, sinks, stop)


def _assemble_run(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    state: RunState,
    finite: FiniteCheck,
    directory: RunDirectory,
    sinks: Sinks,
    stop: StopRequest,
) -> Run:
    """The objects that know when they are due, around the steps."""
    plan, selection, watch = components.plan, components.selection, Stopwatch()
    end = End(state.progress, config.train, components.total_global_batches)
    profiler = build_profiler(
        config.profile,
        folder=directory.path / "profile",
        runtime=runtime,
        precision=components.precision,
        progress=state.progress,
        watch=watch,
        runs_as=components.execution.line(),
        forward=components.forward,
    )
    step = _build_step(config, runtime, components, state, watched=profiler.batches)
    log = build_log(components, runtime, state, finite, step, directory, sinks, watch, end)
    checkpointer = Checkpointer(
        components, runtime=runtime, state=state, log=log, directory=directory, end=end
    )
    return Run(
        config=config,
        runtime=runtime,
        data=components.data,
        plan=plan,
        loader=components.loader,
        state=state,
        steps=_build_steps(components, step, runtime),
        end=end,
        log=log,
        evaluator=Evaluator(
            components,
            runtime=runtime,
            state=state,
            log=log,
            watch=watch,
            stop=stop,
            end=end,
            best_weights=checkpointer.best_weights,
        ),
        checkpointer=checkpointer,
        selection=selection,
        sinks=sinks,
        directory=directory,
        stop=stop,
        profiler=profiler,
        watch=watch,
    )


def _prepare(config: RunConfig, runtime: Runtime) -> tuple[RunConfig, Components]:
    """Data and model on every rank, or one refusal on all of them."""
    config = identify_weights(config, runtime)
    data = load_data(config, runtime)
    if config.train.auto_batch:
        config = fit_micro_batch(
            config, runtime, len(data.train), lambda trial: _step_alone(trial, runtime, data)
        )
    build_mine = partial(build_components, config, runtime, data, among_ranks=True)
    return config, raise_on_all_ranks(runtime, build_mine)


def _step_alone(config: RunConfig, runtime: Runtime, data: Datasets) -> None:
    """One step over zeros, with the shapes of this rank and without the others."""
    alone = replace(runtime, world_size=1, backend="")
    components = build_components(config, runtime, data).on(alone)
    state = build_state(config, alone, components)
    global_batch = components.plan.largest_global_batch
    sizes = (micro.size for micro in global_batch.micro_batches)
    batches = (components.example.batch(size).to(runtime.device) for size in sizes)
    _build_step(config, alone, components, state)([global_batch], batches)


def build_state(config: RunConfig, runtime: Runtime, components: Components) -> RunState:
    """Wrap the model for its ranks; the average is copied before that, from the raw module."""
    average = build_average(config.train, components.model, components.plan.epoch_schedule)
    loss = LossModule(
        components.model,
        normalize=components.normalize,
        precision=components.precision,
        task=components.task,
        call=components.call,
    )
    parallel = config.parallel
    if components.flat is None:  # passes written out use all parameters
        parallel = decide_unused(
            parallel,
            loss,
            runtime=runtime,
            example=components.example,
            changes=bool(config.model.train_from),
        )
    prepare_blocks(components.model, parallel, runtime.world_size)
    engine = _engine(components, average)(
        loss,
        compiled=components.execution.compiled,
        runtime=runtime,
        parallel=parallel,
        compile_=config.compile,
        plan=components.plan,
        example=components.example,
    )
    seed_stream(config.seed, "rank", runtime.rank)  # for dropout: weights had one for all ranks
    return RunState(
        engine=engine,
        optimizer=components.optimizer,
        schedule=components.schedule,
        precision=components.precision,
        average=average,
        meter=Meter(),
        progress=Progress(),
        seed=config.seed,
        runtime=runtime,
    )


def _engine(components: Components, average: Average | None) -> Callable[..., Engine]:
    """What builds the engine that was decided on."""
    execution = components.execution
    if execution.engine in ("FSDP", "Accelerate with FSDP"):
        from trainer.engines.fsdp import ShardedEngine  # slow to import

        return partial(
            build_sharded if execution.engine == "Accelerate with FSDP" else ShardedEngine,
            optimizer=components.optimizer,
            average=average.module if average else None,
            deferred=components.deferred,
        )
    if execution.engine == "Accelerate":
        return AccelerateEngine
    return partial(NativeEngine, flat=components.flat, stages=execution.stages)


def _build_step(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    state: RunState,
    watched: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches,
) -> TrainStep:
    execution = components.execution
    loader = None
    if execution.stages and execution.max_steps > 1:
        assert isinstance(components.loader, ResidentLoader)
        loader = components.loader
    return TrainStep(
        engine=state.engine,
        optimizer=components.optimizer,
        kernel=components.kernel,
        schedule=components.schedule,
        precision=components.precision,
        augment=components.augment,
        average=state.average,
        meter=state.meter,
        progress=state.progress,
        clip_norm=config.train.clip_norm,
        parts=TrainedParts(state.engine.module, config.model.train_from),
        runtime=runtime,
        max_steps=execution.max_steps,
        loader=loader,
        watched=watched,
    )


def _build_steps(components: Components, step: TrainStep, runtime: Runtime) -> Steps:
    """The step itself, or recordings of it."""
    if not components.execution.cuda_graphs:
        return step
    assert isinstance(components.loader, ResidentLoader)
    return RecordedSteps(step, loader=components.loader, recorder=GraphRecorder(runtime.device))
