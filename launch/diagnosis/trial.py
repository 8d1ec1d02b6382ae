"""Short trainings on copies of a run's model: plain and eager, on one device."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from torch import nn

from configs.errors import InputError
from configs.schema_execution import ParallelConfig
from configs.schema_training import ScheduleConfig
from data.augment import as_is
from data.collate import stack
from data.loading.order import GlobalBatch as PlannedBatch
from data.loading.order import MicroBatch
from data.samples import Example
from launch.diagnosis.activity import ActivityWatch
from launch.diagnosis.subject import GlobalBatch, Subject, plan_alone
from trainer.backward.autograd import LossModule
from trainer.checkpoints.state import Progress
from trainer.engines.native import NativeEngine
from trainer.objective.meter import Meter
from trainer.objective.tasks import classification
from trainer.optim.fused import DirectKernel
from trainer.optim.optimizers import build_optimizer, has_fused_kernel, needs_closure
from trainer.optim.parameter_groups import group_parameters
from trainer.optim.schedule import PureSchedule, constant
from trainer.ranks.precision import build_precision
from trainer.ranks.rng import seed_stream
from trainer.ranks.runtime import Runtime
from trainer.step import TrainStep


@dataclass(slots=True)
class LayerTrace:
    """One weight over the steps of a trial."""

    gradient: list[float] = field(default_factory=list)
    """L2 norm of its gradient, before clipping."""
    update: list[float] = field(default_factory=list)
    """L2 norm of its change over that of itself."""


@dataclass(slots=True)
class Trial:
    """What a short training did."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    """Mean loss of each step."""
    layers: dict[str, LayerTrace] = field(default_factory=dict)
    """Traces by the name of the parameter, for those of two dimensions or more."""
    total_gradient: list[float] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    """Trainable parameters that never got a gradient."""
    activity: ActivityWatch = field(default_factory=ActivityWatch)
    """Activations of the second half."""
    skipped: int = 0
    """Steps whose fp16 gradients overflowed."""
    step_seconds: list[float] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        return not all(map(math.isfinite, self.losses))

    @property
    def final_loss(self) -> float:
        """Mean over the last quarter of the steps; infinite after divergence."""
        last = self.losses[-max(len(self.losses) // 4, 1) :]
        return math.inf if self.diverged else sum(last) / len(last)


def run_trial(
    subject: Subject, *, lr: float, steps: int, watched: bool = False, fp32: bool = False
) -> Trial:
    """Train a copy for some steps; what it saw is in the Trial.

    Schedules that begin small reach `lr` halfway, so that a trial of 50 steps tells something about
    a run of 50,000. Ends early when the loss is not finite.

    Args:
        subject: The run.
        lr: Peak learning rate.
        steps: Optimizer steps; the batches are repeated if there are fewer.
        watched: Note gradients, updates and activations too.
        fp32: Compute in float32 whatever the config says.
    """
    seed_stream(subject.config.seed, "rank", 0)
    trial = Trial(subject.copy())
    step = _train_step(subject, trial.model, lr=lr, steps=steps, fp32=fp32)
    trial.missing = {name for name, p in trial.model.named_parameters() if p.requires_grad}
    for number in range(steps):
        began = time.perf_counter()
        batch = subject.batches[number % len(subject.batches)]
        _take(trial, step, number, batch, watched=watched, late=number >= steps // 2)
        trial.step_seconds.append(time.perf_counter() - began)
        if not math.isfinite(trial.losses[-1]):
            break
    return trial


def _train_step(
    subject: Subject, model: nn.Module, *, lr: float, steps: int, fp32: bool
) -> TrainStep:
    """The step of a run (trainer/step.py) on this device alone: autograd, a kernel that steps.

    Raises:
        InputError: If the optimizer asks for the loss several times a step.
    """
    config, runtime = subject.config, Runtime(launcher="python", device=subject.device)
    dtype = "fp32" if fp32 else config.precision.dtype
    precision = build_precision(replace(config.precision, dtype=dtype), subject.device)
    scaled = precision.scaler.is_enabled()
    fused = has_fused_kernel(config.optimizer, subject.device, scaled=scaled)
    groups = group_parameters(model, config.optimizer)
    optimizer = build_optimizer(
        replace(config.optimizer, lr=lr), groups, subject.device, scaled=scaled
    )
    if needs_closure(optimizer):
        raise InputError(
            "optimizer.name",
            given=config.optimizer.name,
            expected="an optimizer that steps once per gradient, to look at single steps",
            remedy="Examine the run with --optimizer.name adam.",
        )
    rises = config.schedule.warmup_steps or config.schedule.name == "one_cycle"
    rising = ScheduleConfig(warmup_steps=steps // 2 if rises else 1)
    plan = plan_alone(config, subject.data)
    engine = NativeEngine(
        LossModule(
            model,
            normalize=subject.normalize,
            precision=precision,
            task=classification(label_smoothing=config.train.label_smoothing),
        ),
        flat=None,
        stages=False,
        runtime=runtime,
        parallel=ParallelConfig(),
        plan=plan,
        example=Example(subject.data.train[0], stack),
    )
    return TrainStep(
        engine=engine,
        optimizer=optimizer,
        kernel=DirectKernel(optimizer) if fused else optimizer,
        schedule=PureSchedule(constant, rising, lr, steps, plan.epoch_schedule),
        precision=precision,
        augment=as_is,
        average=None,
        meter=Meter(),
        progress=Progress(),
        clip_norm=config.train.clip_norm,
        runtime=runtime,
    )


def _take(
    trial: Trial, step: TrainStep, number: int, batch: GlobalBatch, *, watched: bool, late: bool
) -> None:
    """One optimizer step, and what is to be seen of it from outside."""
    before = {n: p.detach().clone() for n, p in trial.model.named_parameters() if p.ndim >= 2}
    sizes = [micro.size for micro in batch]
    micros = tuple(MicroBatch(0, size, 0, True, True, True) for size in sizes)
    global_batches = [PlannedBatch(number, 0, 0, sum(sizes), False, micros)]
    meter, hyperparameters = Meter(), step.next_hyperparameters(1)
    with trial.activity.watching(trial.model) if watched and late else nullcontext():
        taken = step.take(global_batches, iter(batch), hyperparameters, meter)
    trial.losses.append(meter.collect(step.runtime).loss)
    step.note(global_batches, [bool(kept) for kept in taken] or None, hyperparameters)
    named = [(n, p) for n, p in trial.model.named_parameters() if p.grad is not None]
    trial.missing -= {name for name, _ in named}
    if watched:
        clipped = 1.0
        if step.norm is not None and step.clip_norm is not None:
            clipped = max(clipped, float(step.norm) / step.clip_norm)
        _note_gradients(trial, named, clipped)
    if not all(taken):
        trial.skipped += 1
        return
    for name, parameter in named if watched else []:
        if name in before:
            moved = float((parameter.detach() - before[name]).norm())
            trial.layers[name].update.append(moved / max(float(before[name].norm()), 1e-12))


def _note_gradients(trial: Trial, named: list[tuple[str, nn.Parameter]], clipped: float) -> None:
    """Record norms of gradients, `clipped` times as large as they are now."""
    squares = 0.0
    for name, parameter in named:
        assert parameter.grad is not None
        norm = float(parameter.grad.norm()) * clipped
        squares += norm**2 if math.isfinite(norm) else math.inf
        if parameter.ndim >= 2:
            trial.layers.setdefault(name, LayerTrace()).gradient.append(norm)
    trial.total_gradient.append(squares**0.5)
