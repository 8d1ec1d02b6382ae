"""How many steps of a run may be taken in a row, and whether they are recorded."""

from __future__ import annotations

import math

from configs.errors import InputError
from configs.schema import RunConfig
from data.augment import as_is
from data.loading.loader import ResidentLoader
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.components import Components
from trainer.cuda_graphs.recorded_steps import LENGTHS, RecordedStretches
from trainer.cuda_graphs.recorder import GraphRecorder
from trainer.engines.native import NativeEngine
from trainer.optim.fused import STATE
from trainer.optim.schedule import PureSchedule
from trainer.step import TrainStep
from trainer.stretches import Stretches

MOST_EXECUTED = 10
"""Steps of a stretch that is not recorded."""
BLOCK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Of the samples of a stretch as float32: on a CPU they should stay in the cache."""
OWN = ("torch.nn", "trainer.")
"""Whose modules are known to be recorded well: others may look at the device on their way."""


def build_stretches(config: RunConfig, components: Components, step: TrainStep) -> Stretches:
    """The steps of a run, one at a time or in stretches.

    Raises:
        InputError: If `compile.capture: true` asks for what cannot be.
    """
    why = obstacle(config, components, step)
    share = components.plan.largest_global_batch.micro_batches
    num_bytes = sum(micro.size for micro in share) * math.prod(components.data.input_shape) * 4
    most = max(1, BLOCK_BYTES.get(step.runtime.device.type, 1) // num_bytes)
    if config.compile.capture is True and why is not None:
        raise InputError(
            "compile.capture",
            given="true",
            expected=why,
            remedy="Use --compile.capture auto, which records steps where that is possible.",
        )
    engine, loader = step.engine, components.loader
    passes = engine.passes if isinstance(engine, NativeEngine) else None
    resident = loader if isinstance(loader, ResidentLoader) else None
    alone = components.plan.micro_batches_per_step == 1 and components.augment is as_is
    ahead = passes if isinstance(passes, ExplicitPasses) and resident and alone else None
    if why is None and (config.compile.capture is True or _known(config, step)):
        recorder = GraphRecorder(step.runtime.device)
        assert resident is not None
        return RecordedStretches(
            step, most=min(most, LENGTHS[0]), loader=resident, ahead=ahead, recorder=recorder
        )
    if not _lags(config, components, step):
        return Stretches(step)
    cuda = step.runtime.device.type == "cuda"
    if step.precision.scaler.is_enabled() and cuda:  # a CPU is never behind
        return Stretches(step, most=MOST_EXECUTED)
    if ahead is not None and not cuda:
        return Stretches(step, most=min(most, MOST_EXECUTED), loader=resident, ahead=ahead)
    return Stretches(step)


def _lags(config: RunConfig, components: Components, step: TrainStep) -> bool:
    """Whether the host may learn later what became of a step."""
    fused = type(step.optimizer) in STATE and step.optimizer.param_groups[0]["fused"]
    return (
        isinstance(components.schedule, PureSchedule)
        and bool(fused)
        and isinstance(step.engine, NativeEngine)
        and config.parallel.reduction == "fast"
        and not config.profile.enabled
    )


def obstacle(config: RunConfig, components: Components, step: TrainStep) -> str | None:
    """What a run would have to be for its steps to be recorded; None if it is that."""
    augment = config.data.augment
    needs = {
        "a CUDA device": step.runtime.device.type == "cuda",
        "one rank": step.runtime.world_size == 1,
        "parallel.engine native": isinstance(step.engine, NativeEngine),
        "parallel.reduction fast": config.parallel.reduction == "fast",
        "parallel.activation_checkpointing false": not config.parallel.activation_checkpointing,
        "data in device memory (see data.placement)": isinstance(components.loader, ResidentLoader),
        "no mixup and no cutmix": not (augment.mixup or augment.cutmix),
        "compile.mode default": config.compile.mode == "default",
        "no --profile, which looks at single steps": not config.profile.enabled,
        "optimizer sgd (in fp16: not), adam or adamw, and a schedule that is a function of the "
        "step": _lags(config, components, step),
    }
    return next((what for what, met in needs.items() if not met), None)


def _known(config: RunConfig, step: TrainStep) -> bool:
    modules = [type(module).__module__ for module in step.engine.module.modules()]
    own_task = ":" not in config.task.name + (config.task.loss or "")
    return own_task and all(name.startswith(OWN) for name in modules)
