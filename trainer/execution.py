"""How a run is executed, and why: decided once, and handed to everybody who carries it out.

Nothing here looks at a device, so that a run on a GPU can be told about without having one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from configs.errors import InputError
from configs.schema import RunConfig
from data.augment import as_is
from trainer.backward.compiling import choose_regional, equal_blocks
from trainer.backward.explicit.plain_layers import describe
from trainer.networks.memory_format import choose_channels_last
from trainer.optim.optimizers import has_fused_kernel, one_kernel
from trainer.steps_in_a_row import decide_steps, is_known
from trainer.ways import Engine, Execution, Gradients, KernelKind, Reduction, Subject


def decide(config: RunConfig, subject: Subject) -> Execution:
    """Choose how a run is executed.

    Raises:
        InputError: If a key of `compile` asks for what cannot be had.
    """
    because: dict[str, str] = {}

    def chosen(name: str, way: Any, reason: str) -> Any:
        because[name] = reason
        return way

    engine: Engine = chosen("engine", *_engine(config, subject))
    gradients: Gradients = chosen("gradients", *_gradients(config, subject, engine))
    regional = _regional(config, subject, engine, gradients)
    if regional:
        asked = f"compile.regional {str(config.compile.regional).lower()}"
        because["gradients"] += f"; {asked}, {equal_blocks(subject.model)} equal blocks"
    reduction: Reduction = chosen("reduction", *_reduction(config, subject, engine, gradients))
    kernel: KernelKind = chosen("optimizer", *_kernel(config, subject, gradients))
    resident: bool = chosen("data", *subject.resident)
    stages = (
        gradients == "written out"
        and resident
        and subject.plan.micro_batches_per_step == 1
        and subject.augment is as_is
    )
    max_steps, cuda_graphs, because["steps"] = decide_steps(config, subject, engine, stages=stages)
    return Execution(
        engine=engine,
        gradients=gradients,
        reduction=reduction,
        kernel=kernel,
        max_steps=max_steps,
        cuda_graphs=cuda_graphs,
        tried=cuda_graphs and not is_known(config, subject),
        stages=stages,
        resident=resident,
        regional=regional,
        channels_last=choose_channels_last(
            config, subject.model, subject.device, autograd=gradients != "written out"
        ),
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


def _regional(config: RunConfig, subject: Subject, engine: Engine, gradients: Gradients) -> bool:
    """Whether blocks are compiled by themselves; a gate that nothing goes through is refused."""
    if gradients == "compiled autograd":
        sharded = engine in ("FSDP", "Accelerate with FSDP")
        return choose_regional(config.compile, subject.model, sharded=sharded)
    if config.compile.fullgraph:
        raise InputError(
            "compile.fullgraph",
            given=True,
            expected="a run that is compiled: nothing would be checked",
            remedy="Add --compile.enabled true.",
        )
    return False


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
