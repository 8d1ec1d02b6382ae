"""How many steps of a run are taken in a row, whether they are recorded as CUDA graphs, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator

from configs.errors import InputError
from configs.own_modules import PREFIX
from configs.schema import RunConfig
from trainer.optim.optimizers import has_fused_kernel
from trainer.optim.schedule import is_pure
from trainer.ways import Engine, Subject

MAX_EXECUTED = 10
"""Steps in a row that are not recorded."""
MAX_RECORDED = 50
"""Steps of one CUDA graph."""
BLOCK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Of the samples of a row of steps as float32: on a CPU they should stay in the cache."""
CASTS = ("none", "bf16", "fp16")
"""Compressions that do the same in every step."""
KNOWN_MODULES = ("torch.nn", f"{PREFIX}trainer.")
"""Whose modules are known to be recorded well: with others it is tried first."""


def decide_steps(
    config: RunConfig, subject: Subject, engine: Engine, *, stages: bool
) -> tuple[int, bool, str]:
    """Steps in a row at most, whether they are recorded, and why.

    Raises:
        InputError: If `compile.capture: true` asks for what cannot be had.
    """
    cuda = subject.device.type == "cuda"
    scaled = config.precision.dtype == "fp16"
    late = next(_needs_the_host(config, subject, engine), None)
    obstacle = next(_obstacles_to_recording(config, subject, engine), late)
    # Of the largest share, so that all ranks take as many steps in a row.
    share = -(-subject.plan.largest_global_batch.size // subject.world_size)
    num_bytes = share * math.prod(subject.input_shape) * 4
    fit = max(1, BLOCK_BYTES.get(subject.device.type, 1) // num_bytes)
    if config.compile.capture is True and obstacle is not None:
        raise InputError(
            "compile.capture",
            given="true",
            expected=obstacle,
            remedy="Use --compile.capture auto, which records steps where that is possible.",
        )
    if obstacle is None:
        return min(fit, MAX_RECORDED), True, "GPUs that hold the data"
    if late is not None:
        return 1, False, f"several in a row take {late}"
    if scaled and cuda:
        return MAX_EXECUTED, False, "what fp16 skips is read once for several steps"
    if stages and not cuda and fit > 1:
        reason = "batches of written-out passes are made ready together"
        return min(fit, MAX_EXECUTED), False, reason
    if cuda:
        return 1, False, f"CUDA graphs take {obstacle}"
    if stages:
        return 1, False, "the samples of one fill the cache"
    return 1, False, "nothing is gained by several in a row here"


def _needs_the_host(config: RunConfig, subject: Subject, engine: Engine) -> Iterator[str]:
    """What a run would have to be for the host to learn later what became of a step."""
    scaled = config.precision.dtype == "fp16"
    if engine != "native":
        yield "parallel.engine native and parallel.strategy ddp"
    if config.parallel.reduction != "fast":
        yield "parallel.reduction fast"
    pure = is_pure(config.schedule)
    if not (pure and has_fused_kernel(config.optimizer, subject.device, scaled=scaled)):
        yield (
            "optimizer sgd (in fp16: not), adam or adamw, and a schedule that is a function of the "
            "step"
        )


def _obstacles_to_recording(config: RunConfig, subject: Subject, engine: Engine) -> Iterator[str]:
    """What a run would have to be for its steps to be recorded."""
    alone = subject.world_size == 1
    needs = {
        "a CUDA device": subject.device.type == "cuda",
        "one rank, or parallel.backend nccl": alone or config.parallel.backend != "gloo",
        "parallel.compression none, bf16 or fp16": alone or config.parallel.compression in CASTS,
        "parallel.find_unused_parameters auto or false": alone
        or config.parallel.find_unused_parameters is not True,
        "parallel.engine native": engine == "native",
        "parallel.reduction fast": config.parallel.reduction == "fast",
        "parallel.activation_checkpointing false": not config.parallel.activation_checkpointing,
        "no model.train_from": not config.model.train_from,
        "data in device memory (see data.placement)": subject.resident[0],
        "no mixup and no cutmix": not (config.data.augment.mixup or config.data.augment.cutmix),
        "compile.mode default": config.compile.mode == "default",
        "compile.capture auto or true": config.compile.capture is not False,
    }
    yield from (what for what, met in needs.items() if not met)


def is_known(config: RunConfig, subject: Subject) -> bool:
    """Whether nothing but torch.nn and this project is in a step."""
    modules = [type(module).__module__ for module in subject.model.modules()]
    own_task = ":" not in config.task.name + (config.task.loss or "")
    return own_task and all(name.startswith(KNOWN_MODULES) for name in modules)
