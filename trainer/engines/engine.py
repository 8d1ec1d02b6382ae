"""What the step and the checkpoints need of whoever runs the model, on one rank or among many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from data.loading.order import GlobalBatch, MicroBatch
from data.samples import Batch
from trainer.backward.autograd import Passes, Sums
from trainer.engines.dtensor import load_full_state
from trainer.ranks.neighbour import Neighbour


class Engine:
    """Runs a model that lies whole on every rank; whoever does otherwise overrides what differs."""

    module: nn.Module
    """The raw module: its state dict has the keys the user wrote."""
    passes: Passes
    gradient_scale = 1.0
    """Factor of the loss that undoes an average over ranks."""
    sharded = False
    """Whether a rank holds, and reads of a checkpoint, its rows only."""
    warmup_steps = 0
    """Steps that it has to have executed before one of them is recorded as a CUDA graph."""
    against_recording: str | None = None
    """Why none of them can be, if that is known."""
    neighbour: Neighbour | None = None
    """Who sums gradients with this rank, instead of collectives."""
    waits: Literal["", "within the backward pass", "after the backward pass"] = ""
    """Where a rank waits for the others in a step; empty if it cannot be told from its own work."""

    def trained(self) -> list[nn.Parameter]:
        """Whose `.grad` together is the gradient: of this rank, whole or in parts."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def clear(self) -> None:
        """Forget the gradient of the step before."""
        self.passes.clear()

    def without_autograd(self) -> AbstractContextManager[Any]:
        """Around some steps: records nothing for autograd if nobody here asks for it."""
        return nullcontext()

    def stage(self, block: Batch, global_batches: Sequence[GlobalBatch]) -> Iterator[Batch]:
        """This rank's micro-batches of some global batches of one size, which lie in one block.

        Made ready together where that is quicker; the steps that follow take all of them.
        """
        start = 0
        for global_batch in global_batches:
            for micro in global_batch.micro_batches:
                stop = start + micro.size
                yield block.map(partial(_rows, rows=slice(start, stop)))._replace(size=micro.size)
                start = stop

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of one micro-batch."""
        return nullcontext()

    def differentiate(self, batch: Batch, loss_weight: float) -> Sums:
        """Add the gradient of `loss_weight` times the summed loss; see `autograd.Passes`."""
        return self.passes(batch, loss_weight)

    def reduce(self) -> None:
        """After the last micro-batch: `.grad` holds the gradient of the whole global batch."""

    def abandon(self) -> None:
        """After a step that broke off on some rank: forget what it had begun; on every rank."""

    def weights(self) -> dict[str, Tensor]:
        """The whole state dict of the raw module; every rank calls it, rank 0 needs the answer."""
        return dict(self.module.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over a whole state dict, which every rank has."""
        load_full_state(self.module, weights)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state dict of the optimizer, parameters numbered as by torch.optim."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave, on whatever engine and number of ranks."""
        optimizer.load_state_dict(state)

    def reduction_state(self) -> dict[str, Any]:
        """What this rank's reduction remembers from step to step, if anything."""
        return {}

    def load_reduction_state(self, state: dict[str, Any]) -> None:
        """Take over what the same rank of as many ranks gave."""

    def run_along(self, module: nn.Module) -> None:
        """Take part in other ranks' forward pass of `module`, if it needs all ranks."""


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return tensor[rows]
