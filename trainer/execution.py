"""How a run is executed, and why: decided once, and handed to everybody who carries it out.

Nothing here looks at a device, so that a run on a GPU can be told about without having one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from configs.errors import InputError
from configs.schema import RunConfig
from data.augment import Augment, as_is
from data.loading.order import Plan
from trainer.backward.compiling import choose_regional, equal_blocks
from trainer.backward.explicit.plain_layers import describe
from trainer.networks.memory_format import choose_channels_last
from trainer.objective.task import Task
from trainer.optim.optimizers import has_fused_kernel, one_kernel
from trainer.optim.schedule import is_pure

MAX_EXECUTED = 10
"""Steps in a row that are not recorded."""
MAX_RECORDED = 50
"""Steps of one CUDA graph."""
BLOCK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}
"""Of the samples of a row of steps as float32: on a CPU they should stay in the cache."""
KNOWN_MODULES = ("torch.nn", "trainer.")
"""Whose modules are known to be recorded well: others may look at the device on their way."""

Engine = Literal["native", "FSDP", "Accelerate", "Accelerate with FSDP"]
Gradients = Literal["written out", "autograd", "compiled autograd"]
Reduction = Literal["none", "all-reduce", "DDP", "PowerSGD", "exact tree", "reduce-scatter"]
KernelKind = Literal["flat", "direct", "own"]
KERNELS = {
    "flat": "one fused kernel over all parameters",
    "direct": "torch's fused kernel, called directly",
    "own": "the optimizer's own step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the decision looks at besides the config."""

    model: nn.Module
    task: Task
    augment: Augment
    plan: Plan
    input_shape: tuple[int, ...]
    device: torch.device
    world_size: int
    resident: tuple[bool, str]
    """Whether the data set lives on the device, and why (`data.loading.loader.placement`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The ways that a run takes, each with its reason."""

    engine: Engine
    gradients: Gradients
    reduction: Reduction
    kernel: KernelKind
    max_steps: int
    """Optimizer steps in a row at most, without the host in between."""
    cuda_graphs: bool
    """Whether these are recorded and replayed."""
    stages: bool
    """Whether the batches of several steps are made ready together."""
    resident: bool
    """Whether the data set lives on the device."""
    regional: bool = False
    """Whether blocks are compiled by themselves, and equal ones once."""
    channels_last: bool = False
    """Whether weights of convolutions have their channels last in memory."""
    because: Mapping[str, str] = field(default_factory=dict)
    """The reason for each of these, by name; what gradients depend on has that of theirs."""

    @property
    def compiled(self) -> bool:
        return self.gradients == "compiled autograd"

    @property
    def ways(self) -> dict[str, str]:
        """Each choice in words."""
        details = [
            *(["each block once"] if self.regional else []),
            *(["channels last"] if self.channels_last else []),
        ]
        more = f" ({', '.join(details)})" if details else ""
        steps = "one by one" if self.max_steps == 1 else f"up to {self.max_steps} in a row"
        return {
            "engine": self.engine,
            "gradients": self.gradients + more,
            "reduction": self.reduction,
            "optimizer": KERNELS[self.kernel],
            "steps": f"CUDA graphs of {steps}" if self.cuda_graphs else steps,
            "data": "on the device" if self.resident else "from host memory",
        }

    def line(self) -> str:
        """`runs as: ...`, for the log."""
        return "runs as: " + ", ".join(f"{name} {way}" for name, way in self.ways.items())

    def to_json(self) -> dict[str, dict[str, str]]:
        """Each choice with its reason, for environment.json."""
        return {
            name: {"way": way, "because": self.because[name]} for name, way in self.ways.items()
        }


def decide(config: RunConfig, subject: Subject) -> Execution:
    """Choose how a run is executed.

    Raises:
        InputError: If `compile.backward: explicit` or `compile.capture: true` asks for what cannot
            be had.
    """
    because: dict[str, str] = {}

    def chosen(name: str, way: Any, reason: str) -> Any:
        because[name] = reason
        return way

    engine: Engine = chosen("engine", *_engine(config, subject))
    gradients: Gradients = chosen("gradients", *_gradients(config, subject, engine))
    sharded = engine in ("FSDP", "Accelerate with FSDP")
    regional = gradients == "compiled autograd" and choose_regional(
        config.compile, subject.model, sharded=sharded
    )
    if regional:
        asked = f"compile.regional {str(config.compile.regional).lower()}"
        because["gradients"] += f"; {asked}, {equal_blocks(subject.model)} equal blocks"
    channels_last = choose_channels_last(
        config, subject.model, subject.device, autograd=gradients != "written out"
    )
    reduction: Reduction = chosen("reduction", *_reduction(config, subject, engine, gradients))
    kernel: KernelKind = chosen("optimizer", *_kernel(config, subject, gradients))
    resident: bool = chosen("data", *subject.resident)
    stages = (
        gradients == "written out"
        and resident
        and subject.plan.micro_batches_per_step == 1
        and subject.augment is as_is
    )
    max_steps, cuda_graphs, because["steps"] = _steps(config, subject, engine, stages=stages)
    return Execution(
        engine=engine,
        gradients=gradients,
        reduction=reduction,
        kernel=kernel,
        max_steps=max_steps,
        cuda_graphs=cuda_graphs,
        stages=stages,
        resident=resident,
        regional=regional,
        channels_last=channels_last,
        because=because,
    )


def _engine(config: RunConfig, subject: Subject) -> tuple[Engine, str]:
    parallel, several = config.parallel, subject.world_size > 1
    if parallel.strategy == "fsdp" and several:
        if parallel.engine == "accelerate":
            return "Accelerate with FSDP", "parallel.engine accelerate, parallel.strategy fsdp"
        return "FSDP", "parallel.strategy fsdp"
    if parallel.engine == "accelerate":
        return "Accelerate", "parallel.engine accelerate"
    if parallel.strategy == "fsdp":
        return "native", "one rank: there is nothing to share by parallel.strategy fsdp"
    return "native", "parallel.engine native"


def _gradients(config: RunConfig, subject: Subject, engine: Engine) -> tuple[Gradients, str]:
    compile_ = config.compile
    compiles = compile_.enabled is True or (
        compile_.enabled == "auto" and subject.device.type == "cuda"
    )
    obstacle = next(_obstacles_to_writing_out(config, subject, engine), None)
    if compile_.backward == "explicit" and obstacle is not None:
        raise InputError(
            "compile.backward",
            given="explicit",
            expected="a network of Linear, ReLU and Dropout for a classification by cross-entropy, "
            "not compiled, under parallel.strategy ddp, without PowerSGD or checkpointing, and with"
            " sgd, adam or adamw without kwargs and parameter groups",
            remedy="Use --compile.backward auto.",
        )
    if obstacle is None and compile_.backward != "autograd":
        return "written out", "linear layers with ReLU and dropout, and a plain cross-entropy"
    obstacle = obstacle or "compile.backward autograd"
    if not compiles:
        return "autograd", obstacle
    asked = f"compile.enabled {str(compile_.enabled).lower()} on {subject.device.type}"
    return "compiled autograd", f"{asked}; {obstacle}"


def _obstacles_to_writing_out(config: RunConfig, subject: Subject, engine: Engine) -> Iterator[str]:
    """Why gradients come from autograd, the most telling reason first."""
    parallel, task = config.parallel, subject.task
    if engine != "native" or parallel.strategy != "ddp":
        yield f"parallel.engine {parallel.engine}, parallel.strategy {parallel.strategy}"
    asked = {
        "compile.enabled true": config.compile.enabled is True,
        "model.train_from": bool(config.model.train_from),
        "parallel.activation_checkpointing true": parallel.activation_checkpointing,
        "parallel.compression powersgd": parallel.compression == "powersgd",
    }
    yield from (name for name, met in asked.items() if met)
    if task.label_smoothing is None:
        yield f"the loss of task {task.name} is not a plain cross-entropy"
    if not one_kernel(config.optimizer):
        yield "the optimizer is not sgd, adam or adamw over one group of parameters"
    if describe(subject.model) is None:
        yield f"{type(subject.model).__name__} is more than linear layers with ReLU and dropout"


def _reduction(
    config: RunConfig, subject: Subject, engine: Engine, gradients: Gradients
) -> tuple[Reduction, str]:
    parallel = config.parallel
    if parallel.reduction == "exact":
        return "exact tree", "parallel.reduction exact"
    if subject.world_size == 1:
        return "none", "one rank"
    if engine in ("FSDP", "Accelerate with FSDP"):
        return "reduce-scatter", "parallel.strategy fsdp"
    if gradients == "written out":
        return "all-reduce", "written-out passes leave all gradients in one buffer"
    if parallel.compression == "powersgd":
        return "PowerSGD", "parallel.compression powersgd"
    return "DDP", "autograd on several ranks"


def _kernel(config: RunConfig, subject: Subject, gradients: Gradients) -> tuple[KernelKind, str]:
    if gradients == "written out":
        return "flat", "written-out passes keep all parameters in one buffer"
    if config.parallel.strategy == "fsdp" and subject.world_size > 1:
        return "own", "parallel.strategy fsdp"
    scaled = config.precision.dtype == "fp16"
    if has_fused_kernel(config.optimizer, subject.device, scaled=scaled):
        return "direct", f"{config.optimizer.name} on {subject.device.type}"
    return "own", f"torch has no fused kernel of {config.optimizer.name} for this run"


def _steps(
    config: RunConfig, subject: Subject, engine: Engine, *, stages: bool
) -> tuple[int, bool, str]:
    """How many steps are taken in a row, whether they are recorded, and why."""
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
    if obstacle is None and (config.compile.capture is True or _is_known(config, subject)):
        return min(fit, MAX_RECORDED), True, "one GPU that holds the data"
    if late is not None:
        return 1, False, f"several in a row take {late}"
    if scaled and cuda:
        return MAX_EXECUTED, False, "what fp16 skips is read once for several steps"
    if stages and not cuda and fit > 1:
        reason = "batches of written-out passes are made ready together"
        return min(fit, MAX_EXECUTED), False, reason
    if cuda:
        return 1, False, f"CUDA graphs take {obstacle or 'modules known to be recorded'}"
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
    needs = {
        "a CUDA device": subject.device.type == "cuda",
        "one rank": subject.world_size == 1,
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


def _is_known(config: RunConfig, subject: Subject) -> bool:
    modules = [type(module).__module__ for module in subject.model.modules()]
    own_task = ":" not in config.task.name + (config.task.loss or "")
    return own_task and all(name.startswith(KNOWN_MODULES) for name in modules)
