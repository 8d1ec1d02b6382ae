"""The parts that compute: the engine of this rank's model, its state, and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from configs.schema import RunConfig
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.backward.autograd import LossModule
from trainer.backward.compile_watch import CompileWatch
from trainer.backward.compiling import check_whole, compile_passes
from trainer.backward.persistent_cache import use_cache_beside
from trainer.checkpoints.state import Progress, RunState
from trainer.components import Components
from trainer.cuda_graphs.recorded_steps import RecordedSteps
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.engines.accelerate import AccelerateEngine, build_sharded
from trainer.engines.buckets import unmeasured
from trainer.engines.engine import Engine
from trainer.engines.native import NativeEngine
from trainer.engines.unused import decide_unused
from trainer.networks.blocks import prepare_blocks
from trainer.networks.memory_format import put_channels_last
from trainer.networks.trained_parts import TrainedParts
from trainer.objective.meter import Meter
from trainer.optim.average import Average, build_average
from trainer.patient_steps import PatientSteps
from trainer.ranks.collectives import raise_on_all_ranks
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime
from trainer.step import TrainStep
from trainer.steps import Steps


def build_state(config: RunConfig, runtime: Runtime, components: Components) -> RunState:
    """Wrap the model for its ranks; the average is copied before that, from the raw module."""
    if components.execution.channels_last:
        put_channels_last(components.model)
    average = raise_on_all_ranks(
        runtime,
        lambda: build_average(config.train, components.model, components.plan.epoch_schedule),
    )
    loss = LossModule(
        components.model,
        normalize=components.normalize,
        precision=components.precision,
        task=components.task,
        call=components.call,
    )
    parallel = unmeasured(config.parallel) if config.deterministic else config.parallel
    if components.flat is None:  # passes written out use all parameters
        parallel = decide_unused(
            parallel,
            loss,
            runtime=runtime,
            example=components.example,
            changes=bool(config.model.train_from),
        )
    prepare_blocks(components.model, parallel, runtime.world_size)
    if components.execution.compiled:
        _compile(config, runtime, components, loss)
    engine = _engine(components, average)(
        loss,
        runtime=runtime,
        parallel=parallel,
        plan=components.plan,
        example=components.example,
    )
    # The weights came from one stream on every rank; dropout must not.
    seed_stream(config.seed, "rank", runtime.rank)
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


def _compile(config: RunConfig, runtime: Runtime, components: Components, loss: LossModule) -> None:
    """Compile the passes in place, once all ranks know that they may be."""
    regional, plan = components.execution.regional, components.plan
    if config.compile.fullgraph:
        size = max(plan.global_batch(0).micro_batch_sizes[0], 1)
        batch = components.example.batch(size).to(runtime.device)
        raise_on_all_ranks(
            runtime, lambda: check_whole(loss, config.compile, batch, regional=regional)
        )
    compile_passes(loss, config.compile, plan, regional=regional)


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
    return partial(
        NativeEngine,
        flat=components.flat,
        stages=execution.stages,
        recorded=execution.cuda_graphs,
    )


def build_step(
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


def build_steps(
    components: Components, step: TrainStep, runtime: Runtime, compiled: CompileWatch | None
) -> Steps:
    """The step itself, or recordings of it; with patience where ranks compile."""
    steps: Steps = step
    if components.execution.cuda_graphs:
        assert isinstance(components.loader, ResidentLoader)
        steps = RecordedSteps(
            step,
            loader=components.loader,
            recorder=GraphRecorder(runtime.device, several=runtime.in_group),
            tried=components.execution.tried,
            required=components.config.compile.capture is True,
        )
    if compiled is None or runtime.world_size == 1:
        return steps
    parallel = components.config.parallel
    return PatientSteps(steps, runtime=runtime, parallel=parallel, watch=compiled)


def watch_compiling(config: RunConfig) -> CompileWatch:
    """Let the compiler keep what it makes beside the runs, and count what it does."""
    if config.compile.cache:
        use_cache_beside(config.output_dir)
    return CompileWatch()
