"""Short trainings on copies of a run's model: plain and eager, on one device."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import build_loader
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import Batch
from launch.diagnosis.activity import ActivityWatch
from trainer.optim.optimizers import build_optimizer, needs_closure, set_rate
from trainer.optim.parameter_groups import group_parameters
from trainer.ranks.precision import Precision, build_precision
from trainer.ranks.rng import seed_stream

MOST_BYTES = 2**28
MOST_SECONDS = 30.0

GlobalBatch = Sequence[Batch]
"""The micro-batches of one optimizer step, on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A run to be tried out: all that a copy of it needs, and nothing of its directory."""

    config: RunConfig
    data: Datasets
    model: nn.Module
    """The model with its initial weights; only copies of it are trained."""
    device: torch.device
    normalize: Normalize
    batches: Sequence[GlobalBatch]
    """The first global batches of the run."""
    loading_seconds: float
    """Time the loader took for one of them, the first ones not counted."""

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def precision(self) -> Precision:
        return build_precision(self.config.precision, self.device)


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


def plan_alone(config: RunConfig, data: Datasets) -> Plan:
    """The plan of a run on one rank."""
    return Plan(
        num_samples=len(data.train),
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        seed=config.seed,
        drop_last=config.data.drop_last,
    )


def collect(
    config: RunConfig, data: Datasets, device: torch.device, steps: int
) -> tuple[list[GlobalBatch], float]:
    """The first global batches of a run as its loader delivers them, and the seconds for each.

    Fewer than `steps` if they are large or slow in coming.
    """
    plan = plan_alone(config, data)
    loader = build_loader(config.data, data.train, data.test, plan=plan, device=device)
    stream = loader.stream(0)
    batches: list[GlobalBatch] = []
    seconds: list[float] = []
    num_bytes = 0
    while len(batches) < steps and num_bytes < MOST_BYTES:
        began = time.perf_counter()
        global_batch = plan.global_batch(len(batches))
        # A batch without samples stands for nothing here: there are no other ranks.
        found = [next(stream) for _ in global_batch.micro_batches]
        _wait_for(device)
        seconds.append(time.perf_counter() - began)
        batches.append([batch for batch in found if len(batch[1])])
        num_bytes += sum(part.nbytes for batch in found for part in batch)
        if sum(seconds) > MOST_SECONDS:
            break
    steady = seconds[len(seconds) // 4 :]
    # Workers deliver in bursts, so their pace is a mean; without them a hiccup is not the pace.
    pace = statistics.mean if config.data.workers else statistics.median
    return batches, pace(steady)


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
    config = subject.config
    seed_stream(config.seed, "rank", 0)
    trial = Trial(subject.copy().train())
    dtype = "fp32" if fp32 else config.precision.dtype
    precision = build_precision(replace(config.precision, dtype=dtype), subject.device)
    optimizer = build_optimizer(
        replace(config.optimizer, lr=lr),
        group_parameters(trial.model, config.optimizer),
        subject.device,
        scaled=precision.scaler.is_enabled(),
    )
    if needs_closure(optimizer):
        raise InputError(
            "optimizer.name",
            given=config.optimizer.name,
            expected="an optimizer that steps once per gradient, to look at single steps",
            remedy="Examine the run with --optimizer.name adam.",
        )
    rising = (
        steps // 2 if config.schedule.warmup_steps or config.schedule.name == "one_cycle" else 1
    )
    trial.missing = {name for name, p in trial.model.named_parameters() if p.requires_grad}
    for number in range(steps):
        set_rate(optimizer, lr * min((number + 1) / max(rising, 1), 1.0))
        began = time.perf_counter()
        batch = subject.batches[number % len(subject.batches)]
        _step(subject, trial, batch, optimizer, precision, watched, late=number >= steps // 2)
        trial.step_seconds.append(time.perf_counter() - began)
        if not math.isfinite(trial.losses[-1]):
            break
    return trial


def _step(
    subject: Subject,
    trial: Trial,
    batch: GlobalBatch,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    watched: bool,
    late: bool,
) -> None:
    """One optimizer step, in the order of trainer/step.py."""
    config, scaler = subject.config.train, precision.scaler
    size = sum(len(targets) for _, targets in batch)
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for inputs, targets in batch:
        with precision.autocast():
            logits = _forward(trial, subject.normalize(inputs), watched and late)
            loss = F.cross_entropy(
                logits.float(), targets, reduction="sum", label_smoothing=config.label_smoothing
            )
        scaler.scale(loss / size).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) / size
    trial.losses.append(total)
    scaler.unscale_(optimizer)
    named = [(n, p) for n, p in trial.model.named_parameters() if p.grad is not None]
    trial.missing -= {name for name, _ in named}
    before = _note_gradients(trial, named) if watched else {}
    if config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_([p for _, p in named], config.clip_norm)
    scaler.step(optimizer)
    if scaler.is_enabled():
        scale = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < scale:
            trial.skipped += 1
            return
    for name, parameter in named:
        if name in before:
            moved = float((parameter.detach() - before[name]).norm())
            trial.layers[name].update.append(moved / max(float(before[name].norm()), 1e-12))


def _forward(trial: Trial, inputs: Tensor, watched: bool) -> Tensor:
    with trial.activity.watching(trial.model) if watched else nullcontext():
        logits: Tensor = trial.model(inputs)
    return logits


def _note_gradients(trial: Trial, named: list[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Record gradient norms, and return the weights as they are before the step."""
    before = {}
    squares = 0.0
    for name, parameter in named:
        assert parameter.grad is not None
        norm = float(parameter.grad.norm())
        squares += norm**2 if math.isfinite(norm) else math.inf
        if parameter.ndim >= 2:
            trial.layers.setdefault(name, LayerTrace()).gradient.append(norm)
            before[name] = parameter.detach().clone()
    trial.total_gradient.append(squares**0.5)
    return before


@torch.no_grad()
def mean_loss(subject: Subject, most: int = 1024) -> float:
    """Loss of the initial weights in training mode, without label smoothing."""
    model = subject.copy().train()
    total, count = 0.0, 0
    for inputs, targets in flatten(subject.batches):
        with subject.precision().autocast():
            logits = model(subject.normalize(inputs))
        total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
        count += len(targets)
        if count >= most:
            break
    return total / count


def flatten(batches: Sequence[GlobalBatch]) -> Iterator[Batch]:
    for batch in batches:
        yield from batch


@torch.no_grad()
def predict(subject: Subject, model: nn.Module, inputs: Tensor, batch_size: int = 256) -> Tensor:
    """Logits of raw inputs in eval mode, float32 on the CPU; the model stays in eval mode."""
    model.eval()
    parts = []
    for chunk in torch.split(inputs, batch_size):
        with subject.precision().autocast():
            logits = model(subject.normalize(chunk.to(subject.device)))
        parts.append(logits.float().cpu())
    return torch.cat(parts)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
