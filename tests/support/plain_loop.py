"""What a network learns, in plain torch: nothing of the project is in here.

With several parts it is what ranks or shards have to agree with: each part of a batch begins with
the buffers of the step before, gradients are added, and of the buffers that come out those of the
first part with samples are kept, or their mean.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Buffers = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is learned."""

    optimizer: Callable[..., torch.optim.Optimizer]
    dtype: torch.dtype | None = None
    parts: int = 1
    mean_of_buffers: bool = False
    micro: int = 64
    evenly: bool = False
    """Whether a part is cut into equal micro-batches, as many as the largest part needs."""
    weights: Tensor | None = None
    """Of classes: the loss is a mean over the weights of the batch."""
    clip: float | None = None
    decay: float | None = None


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, how: Settings) -> nn.Module | None:
    """Train in place for three epochs of batches of 64, in order; returns the average, if any."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, average, steps = how.optimizer(trained), None, 0
    scaler = torch.amp.GradScaler("cpu", 1024.0, enabled=how.dtype is torch.float16)
    if how.decay:
        average = copy.deepcopy(model).eval()
    for start in [*range(0, len(x), 64)] * 3:
        xs, ys = x[start : start + 64], y[start : start + 64]
        over = len(xs) if how.weights is None else how.weights[ys].sum()
        optimizer.zero_grad()
        before, after = buffers(model), []
        for part in range(how.parts):
            put(model, before)
            mine = slice(len(xs) * part // how.parts, len(xs) * (part + 1) // how.parts)
            if mine.start == mine.stop:
                continue  # it has nothing to add
            for at in micro_batches(mine, -(-len(xs) // how.parts), how):
                xm, ym = xs[at], ys[at]
                with torch.autocast("cpu", how.dtype, enabled=how.dtype is not None):
                    out = model(xm)
                loss = F.cross_entropy(out.float(), ym, how.weights, reduction="sum")
                scaler.scale(loss / over).backward()
            after.append(buffers(model))
        put(model, mean(after) if how.mean_of_buffers else after[0])
        scaler.unscale_(optimizer)
        if how.clip:
            nn.utils.clip_grad_norm_(trained, how.clip)
        scaler.step(optimizer)
        scaler.update()
        steps += 1
        if average is not None and how.decay:
            weight = 1 - min(how.decay, (1 + steps) / (10 + steps))
            for mine_, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine_.data.lerp_(theirs.data, weight)
            put(average, buffers(model))
    return average


def micro_batches(part: slice, largest: int, how: Settings) -> list[slice]:
    """Of a part of a batch, of which the largest has so many samples."""
    if not how.evenly:
        starts = range(part.start, part.stop, how.micro)
        return [slice(start, min(start + how.micro, part.stop)) for start in starts]
    count, size = -(-largest // how.micro), part.stop - part.start
    edges = [part.start + size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]


def buffers(model: nn.Module) -> Buffers:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def put(model: nn.Module, values: Buffers) -> None:
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        model.get_submodule(path)._buffers[key] = value.clone()


def mean(found: list[Buffers]) -> Buffers:
    """Of floating-point numbers; a count is that of the first."""
    return {
        name: torch.stack([part[name] for part in found]).mean(0)
        if first.is_floating_point()
        else first
        for name, first in found[0].items()
    }
