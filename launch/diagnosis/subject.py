"""The run that the doctor examines: its model, its first batches, and what it says untrained."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from data.datasets import Datasets
from data.loading.loader import build_loader
from data.loading.order import Plan
from data.loading.user_order import choose_order
from data.normalize import Normalize
from data.samples import Batch, Example
from data.structures import floats_as, split, tensors
from trainer.networks.calling import Call
from trainer.objective.losses import summed_over
from trainer.objective.task import Task
from trainer.ranks.link import wait_for
from trainer.ranks.precision import Precision, build_precision

MOST_BYTES = 2**28
MOST_SECONDS = 30.0

PLAIN = ("classification", "next_token", "multilabel", "regression")
"""Tasks with a loss of this project's."""

GlobalBatch = Sequence[Batch]
"""The micro-batches of one optimizer step, on the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A run to be tried out: all that a copy of it needs, and nothing of its directory."""

    config: RunConfig
    data: Datasets
    model: nn.Module
    """The model with its initial weights; only copies of it are trained."""
    task: Task
    call: Call
    """Calls the model with the inputs of a batch."""
    example: Example
    device: torch.device
    normalize: Normalize
    batches: Sequence[GlobalBatch]
    """The first global batches of the run."""
    loading_seconds: float
    """Time the loader took for one of them, the first ones not counted."""

    @property
    def tells_classes(self) -> bool:
        """Whether it gives every sample a class: then there are logits and labels to look at."""
        return self.task.name == "classification"

    @property
    def knows_loss(self) -> bool:
        """Whether the loss is of a kind that comes near 0 where everything is learned, and has
        gradients of an order that is known."""
        return self.config.task.loss is None and self.task.name in PLAIN

    @property
    def chance(self) -> float | None:
        """The loss of a model to which all classes are alike; None where the loss has no such
        value."""
        entropy = self.knows_loss and self.task.name in ("classification", "next_token")
        return math.log(self.data.num_classes) if entropy and self.data.num_classes else None

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)

    def precision(self) -> Precision:
        return build_precision(self.config.precision, self.device)

    def outputs(self, model: nn.Module, batch: Batch) -> Any:
        """What a copy of the model makes of a batch."""
        with self.precision().autocast():
            return self.call(model, self.normalize(batch.inputs), batch.targets)

    def loss(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss that an evaluation reports, without label smoothing: its sum over a batch, with
        a graph, and what that is divided by."""
        outputs = self.task.align(floats_as(torch.float32, outputs), batch.targets)
        measure = self.task.measured_loss or self.task.loss
        value = measure(outputs, batch.targets)
        total, weight = summed_over(value, outputs, batch.targets, batch.size)
        return total, total.new_tensor(batch.size) if weight is None else weight

    def samples(self, count: int) -> list[Any]:
        """The first samples of the run, as the data set gives them."""
        order = plan_alone(self.config, self.data).order(0)[:count]
        return [self.data.train[int(index)] for index in order]

    def batch_of(self, samples: list[Any]) -> Batch:
        """Samples as one batch on the device."""
        return Batch(*split(self.example.collate(samples)), len(samples)).to(self.device)


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
        wait_for(device)
        seconds.append(time.perf_counter() - began)
        batches.append([batch for batch in found if batch.size])
        parts = tensors([(batch.inputs, batch.targets) for batch in found])
        num_bytes += sum(part.nbytes for part in parts)
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
    total, divisor, count = 0.0, 0.0, 0
    for batch in flatten(subject.batches):
        found, weight = subject.loss(subject.outputs(model, batch), batch)
        total, divisor, count = total + float(found), divisor + float(weight), count + batch.size
        if count >= most:
            break
    return total / (divisor or 1.0)


def flatten(batches: Sequence[GlobalBatch]) -> Iterator[Batch]:
    for batch in batches:
        yield from batch


@torch.no_grad()
def logits_of_batches(subject: Subject, model: nn.Module, most: int) -> Tensor:
    """Logits of the first samples in eval mode, float32 `(n, classes)` on the CPU; the model stays
    in eval mode."""
    model.eval()
    parts: list[Tensor] = []
    for batch in flatten(subject.batches):
        parts.append(subject.task.align(subject.outputs(model, batch), batch.targets).float().cpu())
        if sum(map(len, parts)) >= most:
            break
    return torch.cat(parts)[:most]
