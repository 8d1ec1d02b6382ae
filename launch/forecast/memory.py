"""How much memory one rank of a run needs, measured on one of its micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from configs.schema import RunConfig
from data.datasets import ArrayDataset, Datasets
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader
from data.structures import tensors
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.checkpointer import GATHERED_BYTES
from trainer.checkpoints.state import RunState
from trainer.components import Components
from trainer.engines.native import NativeEngine
from trainer.networks.blocks import blocks
from trainer.optim.optimizers import needs_closure


@dataclass(frozen=True, slots=True)
class Need:
    """Memory for one purpose, in bytes; None if it cannot be told without running."""

    purpose: str
    num_bytes: int | None
    on_device: bool
    """Whether it is in the memory of the device that trains; else it is in the host's."""
    how: str


def memory_of_rank(
    config: RunConfig, components: Components, state: RunState, plan: Plan
) -> list[Need]:
    """What a rank holds while it trains: a real forward, backward and optimizer step tells.

    The model and the optimizer are moved by that step: they are of no use afterwards.

    Args:
        config: The run.
        components: Parts of any one rank.
        state: The same parts, wrapped for training.
        plan: The plan of the rank with the largest micro-batch.
    """
    module, data = components.model, components.data
    size = largest_micro_batch(plan)
    kept = _train_once(components, state, size)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights = _num_bytes([*module.parameters(), *module.buffers()])
    gradients = _num_bytes(trained)
    optimizer = _num_bytes(
        value
        for state in components.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    if isinstance(
        components.optimizer, torch.optim.LBFGS
    ):  # two vectors for every step it remembers
        optimizer += 2 * gradients * int(components.optimizer.param_groups[0]["history_size"])
    averaged = weights if state.average is not None else 0
    resident = isinstance(components.loader, ResidentLoader)
    sharded = config.parallel.strategy == "fsdp"
    parts = (config.parallel.shard_size or plan.world_size) if sharded else 1
    fetched = _fetched_bytes(plan, module, again=config.parallel.reshard_after_forward)
    here = not config.parallel.cpu_offload
    how = (
        f"one of {parts} parts of it" if sharded else "DDP's buckets are these, not copies of them"
    )
    needs = [
        Need("weights and buffers", weights // parts, here, f"{_count(module):,} parameters"),
        Need("gradients", gradients // parts, here, how),
        Need("optimizer state", optimizer // parts, here, "after a real step"),
        Need("averaged weights", averaged // parts, here, "train.ema_decay, train.swa_from_epoch"),
        Need("fetched blocks", fetched if sharded else 0, True, "at most"),
        Need("activations", kept, True, f"kept for the backward pass, {size} samples at once"),
        Need(
            "micro-batch",
            _batch_bytes(components, size),
            True,
            "as it is read, before normalisation",
        ),
        Need("exact reduction", _tree_bytes(plan, module), True, "partial sums and an exchange"),
        Need("data set", _data_bytes(data), resident, "a whole copy on every rank"),
        _saved(config, weights, weights + optimizer + averaged, parts),
    ]
    return [need for need in needs if need.num_bytes != 0]


def _saved(config: RunConfig, weights: int, state: int, parts: int) -> Need:
    """The copy that is written while training goes on: of a rank's own part, or of everything."""
    name, for_a_while = "checkpoint being written", "for as long as it takes"
    in_parts = config.checkpoint.sharded
    if in_parts == "auto":
        in_parts = config.parallel.strategy == "fsdp" and weights >= GATHERED_BYTES
    if in_parts:
        return Need(name, state // parts, False, for_a_while)
    return Need(name, state, False, f"on rank 0 only, {for_a_while}")


def largest_micro_batch(plan: Plan) -> int:
    return max(plan.largest_global_batch.micro_batch_sizes)


def _train_once(components: Components, state: RunState, size: int) -> int:
    """One step; returns the bytes kept for the backward pass.

    Autograd's are counted eagerly (a compiled model keeps less), by storage, so that views count
    once, and weights not at all. Passes that are written out have their own workspace.
    """
    module = components.model
    device = next(module.parameters()).device
    batch = components.example.batch(size).to(device)
    engine = state.engine
    if isinstance(engine, NativeEngine) and isinstance(engine.passes, ExplicitPasses):
        engine.differentiate(batch, 1.0)
        components.kernel.step()
        return engine.passes.num_bytes
    known = {
        part.untyped_storage().data_ptr() for part in (*module.parameters(), *module.buffers())
    }
    kept: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = components.normalize(batch.inputs)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        with components.precision.autocast():
            outputs = components.call(module, inputs, batch.targets)
        loss, _, _ = components.task.learn(outputs, batch.targets, batch.size)
    loss.backward()  # type: ignore[no-untyped-call]
    components.optimizer.step(loss.item if needs_closure(components.optimizer) else None)
    return sum(kept.values())


def _fetched_bytes(plan: Plan, module: nn.Module, *, again: bool) -> int:
    """Under FSDP: whole weights of a block and the next one, and whole gradients.

    Weights of all blocks unless each is fetched again for the backward pass. Gradients of one
    block, or of all where several micro-batches are summed before they are reduced.
    """
    total = _num_bytes(module.parameters())
    found = [_num_bytes(block.parameters()) for block in blocks(module)]
    sizes = sorted([*found, total - sum(found)], reverse=True)
    weights = sum(sizes[:2]) if again else total
    return weights + (total if plan.micro_batches_per_step > 1 else sizes[0])


def _tree_bytes(plan: Plan, module: nn.Module) -> int:
    """Under exact reduction: a stack of subtrees, one being merged, one from the partner."""
    if plan.shards is None:
        return 0
    flat = _num_bytes(parameter for parameter in module.parameters() if parameter.requires_grad)
    flat += _num_bytes(buffer for buffer in module.buffers() if buffer.is_floating_point())
    height = int(math.log2(plan.shards // plan.world_size)) + 1
    return flat * (height + 2)


def _data_bytes(data: Datasets) -> int | None:
    parts = (data.train, *data.held_out.values())
    arrays = [part for part in parts if isinstance(part, ArrayDataset)]
    return sum(part.num_bytes for part in arrays) if len(arrays) == len(parts) else None


def _batch_bytes(components: Components, size: int) -> int:
    return size * _num_bytes(tensors(components.example.content()))


def _num_bytes(tensors: object) -> int:
    return sum(tensor.nbytes for tensor in tensors)  # type: ignore[attr-defined]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
