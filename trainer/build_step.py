"""The parts that compute: the engine of this rank's model, its state, and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from configs.schema import RunConfig
from data.loading.resident_loader import ResidentLoader
from data.samples import Batch
from trainer.backward.autograd import LossModule
from trainer.checkpoints.state import Progress, RunState
from trainer.components import Components
from trainer.cuda_graphs.recorded_steps import RecordedSteps
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.engines.accelerate import AccelerateEngine, build_sharded
from trainer.engines.engine import Engine
from trainer.engines.native import NativeEngine
from trainer.engines.unused import decide_unused
from trainer.networks.blocks import prepare_blocks
from trainer.networks.trained_parts import TrainedParts
from trainer.objective.meter import Meter
from trainer.optim.average import Average, build_average
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime
from trainer.step import Steps, TrainStep


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


def build_steps(components: Components, step: TrainStep, runtime: Runtime) -> Steps:
    """The step itself, or recordings of it."""
    if not components.execution.cuda_graphs:
        return step
    assert isinstance(components.loader, ResidentLoader)
    return RecordedSteps(step, loader=components.loader, recorder=GraphRecorder(runtime.device))
