"""Composition root: RunConfig + Runtime -> Run. The only place that knows every class."""

from __future__ import annotations

from dataclasses import dataclass, replace

from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import Loader
from data.loading.order import Plan
from trainer.auto_batch import fit_micro_batch
from trainer.backward.compile_watch import CompileWatch
from trainer.beginning import (
    claim_and_decide,
    continue_from,
    identify_weights,
    normalised_as_before,
    refuse_to_profile_nothing,
    start_from,
)
from trainer.build_step import build_state, build_step, build_steps, watch_compiling
from trainer.checkpointer import Checkpointer
from trainer.checkpoints.finite import FiniteCheck
from trainer.checkpoints.run_directory import Resume, RunDirectory
from trainer.checkpoints.state import RunState
from trainer.components import Components, build_components
from trainer.due import End
from trainer.evaluator import Evaluator
from trainer.loop import Run
from trainer.outputs import build_log, open_outputs
from trainer.profiling.profiler import build_profiler
from trainer.ranks.collectives import broadcast_object, raise_on_all_ranks
from trainer.ranks.deterministic import refused_by_name
from trainer.ranks.load_data import least_free_bytes, load_data
from trainer.ranks.runtime import Runtime, use_training_timeout
from trainer.ranks.stop_signals import StopRequest
from trainer.records.sinks import Sinks
from trainer.records.stopwatch import Stopwatch
from trainer.step import TrainStep


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
    if not components.execution.compiled:  # else ranks compile in steps, at different speeds
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
        step=build_step(config, runtime, components, state),
    )


def build(
    config: RunConfig, runtime: Runtime, stop: StopRequest, directory: RunDirectory | None = None
) -> Run:
    """Assemble a run; every rank calls it, inside the process group.

    Nothing is written before every rank has built its part.

    Raises:
        InputError: On every rank alike, if any rank refuses its input.
    """
    config, components = _prepare(config, runtime)
    (directory := directory or RunDirectory(config)).identify(config)
    resume = broadcast_object(
        runtime,
        raise_on_all_ranks(
            runtime,
            lambda: claim_and_decide(config, directory) if runtime.is_main else Resume(None, 0, []),
        ),
    )
    compiled = None
    if components.execution.compiled:  # see PatientSteps
        compiled = watch_compiling(config)
    else:
        use_training_timeout(runtime, config.parallel)
    components = normalised_as_before(components, resume)
    if resume.checkpoint is None:
        raise_on_all_ranks(runtime, lambda: start_from(config, components))
    state = build_state(config, runtime, components)
    finite = FiniteCheck(state)
    notes = raise_on_all_ranks(runtime, lambda: continue_from(config, resume, state))
    end = End(state.progress, config.train, components.total_global_batches)
    raise_on_all_ranks(runtime, lambda: refuse_to_profile_nothing(config, end))
    sinks = raise_on_all_ranks(
        runtime,
        lambda: open_outputs(config, runtime, components, directory, resume, notes, end),
    )
    return _assemble_run(
        config, runtime, components, state, finite, directory, sinks, stop, end, compiled
    )


def _assemble_run(
    config: RunConfig,
    runtime: Runtime,
    components: Components,
    state: RunState,
    finite: FiniteCheck,
    directory: RunDirectory,
    sinks: Sinks,
    stop: StopRequest,
    end: End,
    compiled: CompileWatch | None,
) -> Run:
    """The objects that know when they are due, around the steps."""
    plan, selection, watch = components.plan, components.selection, Stopwatch()
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
    step = build_step(config, runtime, components, state, watched=profiler.batches)
    log = build_log(
        components, runtime, state, finite, step, directory, sinks, watch, end, compiled
    )
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
        steps=build_steps(components, step, runtime, compiled),
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
    if config.deterministic and config.parallel.engine == "native":
        raise_on_all_ranks(runtime, lambda: _try_step(config, runtime, data))
    free = least_free_bytes(runtime)
    return config, raise_on_all_ranks(
        runtime, lambda: build_components(config, runtime, data, among_ranks=True, free=free)
    )


def _try_step(config: RunConfig, runtime: Runtime, data: Datasets) -> None:
    """Refuse an operation that is not deterministic before anything is written."""
    if config.parallel.strategy == "ddp":  # else one rank may not hold the model
        with refused_by_name():
            _step_alone(config, runtime, data)


def _step_alone(config: RunConfig, runtime: Runtime, data: Datasets) -> None:
    """One step over zeros, with the shapes of this rank and without the others."""
    alone = replace(runtime, world_size=1, backend="")
    components = build_components(config, runtime, data).on(alone)
    state = build_state(config, alone, components)
    global_batch = components.plan.largest_global_batch
    sizes = global_batch.micro_batch_sizes
    batches = (components.example.batch(size).to(runtime.device) for size in sizes)
    build_step(config, alone, components, state)([global_batch], batches)
