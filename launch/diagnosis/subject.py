"""The run that the doctor examines: its model, its first batches, and what it says untrained."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import build_loader
from data.loading.order import Plan
from data.loading.user_order import choose_order
from data.normalize import Normalize
from data.samples import Batch
from trainer.ranks.precision import Precision, build_precision

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


def plan_alone(config: RunConfig, data: Datasets) -> Plan:
    """The plan of a run on one rank."""
    order = choose_order(config.data, data.train, config.seed)
    return Plan(
        num_samples=order.size if order else len(data.train),
        user_order=order,
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
    loader = build_loader(config.data, data.train, data.held_out, plan=plan, device=device)
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
        batches.append([batch for batch in found if batch.size])
        num_bytes += sum(part.nbytes for batch in found for part in (batch.inputs, batch.targets))
        if sum(seconds) > MOST_SECONDS:
            break
    steady = seconds[len(seconds) // 4 :]
    # Workers deliver in bursts, so their pace is a mean; without them a hiccup is not the pace.
    pace = statistics.mean if config.data.workers else statistics.median
    return batches, pace(steady)


@torch.no_grad()
def mean_loss(subject: Subject, most: int = 1024) -> float:
    """Loss of the initial weights in training mode, without label smoothing."""
    model = subject.copy()
    total, count = 0.0, 0
    for inputs, targets, _ in flatten(subject.batches):
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
