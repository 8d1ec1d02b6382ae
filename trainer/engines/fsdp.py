"""Every rank holds a part of the model and fetches a block when it computes with it: FSDP2.

https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from configs.errors import InputError, failing_line
from configs.schema import RunConfig
from configs.schema_execution import ParallelConfig
from data.loading.order import GlobalBatch, MicroBatch, Plan
from data.samples import Example
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.engines.dtensor import (
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
)
from trainer.engines.engine import Engine
from trainer.engines.scalars import mark_scalars
from trainer.engines.sharding import build_mesh, check_weights, fill, keep_gathered, shard
from trainer.networks.copying import hooked_weights
from trainer.networks.deferred import Deferred
from trainer.ranks.collectives import broadcast_
from trainer.ranks.precision import DTYPES
from trainer.ranks.runtime import Runtime

UNFUSED = (torch.optim.SGD, torch.optim.Adagrad)
"""Their fused kernels do not take sharded tensors."""
NEED_FULL_WEIGHTS = (
    torch.optim.Adafactor,
    torch.optim.LBFGS,
    torch.optim.Muon,
    torch.optim.Rprop,
    torch.optim.SparseAdam,
)
"""Optimizers that look at a weight as a whole, or whose operations do not take sharded tensors."""


class ShardedEngine(Engine):
    """Autograd over blocks of weights that are gathered before and freed after they are used.

    Weights, gradients and optimizer state are float32 and cut along their first dimension. With a
    `precision.dtype` weights travel and compute in it, and autocast chooses the type of every
    operation, as it does without sharding; weights of `NORMS` stay float32. Gradients are
    summed in float32, or in bfloat16 under `parallel.compression: bf16`.
    """

    def __init__(
        self,
        loss: LossModule,
        *,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        deferred: Deferred | None = None,
        runtime: Runtime,
        parallel: ParallelConfig,
        plan: Plan,
        example: Example,
    ) -> None:
        """
        Args:
            loss: The model with its normalisation and loss, its blocks perhaps compiled; whole on
                every rank or on meta, and then sharded.
            optimizer: Over the model's parameters; it goes on with their parts.
            average: The copy that averages the weights, if there is one; sharded likewise.
            deferred: What gives a model on meta its weights.
            runtime: This rank, within the process group.
            parallel: How ranks share the model.
            plan: Who trains on what, with as many micro-batches on every rank.
            example: The first sample.
        """
        assert plan.even
        self.sharded = True
        self.runtime = runtime
        self.module = loss.module
        self.loss = loss
        self.stand_in = example.batch().to(runtime.device)
        self.reduces = True
        parameters = list(self.module.parameters())
        state = optimizer.state_dict()
        mesh = build_mesh(runtime, parallel)
        for module in (self.module, average):
            if module is not None:
                shard(module, loss.precision.dtype, mesh, parallel)
        if not parallel.reshard_after_forward:
            keep_gathered(self.module)
        if deferred is not None:
            fill(self.module, average, deferred, runtime.device, parallel)
        mark_scalars(self.module)
        parts = dict(zip(parameters, self.module.parameters(), strict=True))
        for group in optimizer.param_groups:
            group["params"] = [parts[parameter] for parameter in group["params"]]
        load_full_optimizer_state(optimizer, state)
        for group in optimizer.param_groups if isinstance(optimizer, UNFUSED) else []:
            group["fused"] = False
        self.passes = AutogradPasses(loss, self.module, loss.precision.scaler, example)

    def clear(self) -> None:
        """The buffers of rank 0 are those of all, as DDP has it: they are what a checkpoint holds,
        and a forward pass may look at them."""
        super().clear()
        broadcast_(self.runtime, list(self.module.buffers()))

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        """Gradients of all micro-batches but the last stay whole, and are summed where they are."""
        if self.reduces != micro.ends_global_batch:
            self.reduces = micro.ends_global_batch
            assert isinstance(self.module, FSDPModule)
            self.module.set_requires_gradient_sync(self.reduces)
        return calling_blocks()

    def run_along(self, module: nn.Module) -> None:
        """Others gather their weights for a forward pass: one over a sample, for nothing."""
        with self.loss.precision.autocast():
            self.loss.call(module, self.loss.normalize(self.stand_in.inputs), self.stand_in.targets)

    def weights(self) -> dict[str, Tensor]:
        return full_state(self.module)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return full_optimizer_state(optimizer)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        load_full_optimizer_state(optimizer, state)


@contextmanager
def calling_blocks() -> Iterator[None]:
    """Say of a model that computes with parts of weights what it did not call.

    Raises:
        InputError: In place of what torch says of them.
    """
    try:
        yield
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        line = failing_line(error)
        raise InputError(
            f"parallel.strategy=fsdp{f' at {line}' if line else ''}",
            given="a model that uses a weight of a block without a call of the block",
            expected="block(x), which fetches its weights, and neither block.forward(x) nor "
            "block.weight",
            remedy="Call it; or give the model a method `blocks()` that leaves it out; or use "
            "--parallel.strategy ddp.",
        ) from None


def check_sharding(
    config: RunConfig, optimizer: torch.optim.Optimizer, model: nn.Module | None = None
) -> None:
    """Refuse what cannot be done with parts of weights.

    Args:
        config: The run.
        optimizer: Over the weights.
        model: Whose weights they are; hooks on these would not be called for parts of them.

    Raises:
        InputError: With what to do instead.
    """
    if isinstance(optimizer, NEED_FULL_WEIGHTS):
        raise InputError(
            "optimizer.name",
            given=type(optimizer).__name__,
            expected="an optimizer that treats every number by itself, such as adamw or sgd, with "
            "parallel.strategy=fsdp",
            remedy="Use another one, or --parallel.strategy ddp.",
        )
    if model is not None and (hooked := hooked_weights(model)):
        raise InputError(
            "parallel.strategy",
            given="fsdp",
            expected=f"ddp for a model with hooks on its weights ({', '.join(hooked[:3])})",
            remedy="They would not be called for parts of weights: hook the module instead.",
        )
    if model is not None:
        check_weights(model, DTYPES[config.precision.dtype])
    if config.parallel.cpu_offload and config.precision.dtype == "fp16":
        raise InputError(
            "parallel.cpu_offload",
            given=True,
            expected="precision.dtype fp32 or bf16",
            remedy="The loss of fp16 is scaled on the GPU, and its gradients would lie elsewhere.",
        )
