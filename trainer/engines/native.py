"""The project's own engine: written-out passes or autograd, and one gradient of all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from configs.schema_execution import CompileConfig, ParallelConfig
from data.loading.order import GlobalBatch, MicroBatch, Plan
from data.samples import Batch, Example
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.backward.compiling import compile_model
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.plain_layers import describe
from trainer.engines.compression import reduce_with_ddp
from trainer.engines.ddp import distribute
from trainer.engines.engine import Engine
from trainer.engines.reduction import FlatAllReduce, PairwiseTree, Reduction
from trainer.optim.flat import FlatParameters, untracked
from trainer.ranks.precision import DTYPES
from trainer.ranks.runtime import Runtime


class NativeEngine(Engine):
    """A whole copy of the model on every rank, and one gradient of all of them."""

    def __init__(
        self,
        loss: LossModule,
        *,
        flat: FlatParameters | None,
        stages: bool,
        compiled: bool,
        runtime: Runtime,
        parallel: ParallelConfig,
        compile_: CompileConfig,
        plan: Plan,
        example: Example,
    ) -> None:
        """
        Args:
            loss: The model with its normalisation and loss.
            flat: The parameters of the model, if the passes are written out; None: autograd's.
            stages: Whether written-out passes make the batches of several steps ready together.
            compiled: Whether autograd's passes are compiled.
            runtime: This rank.
            parallel: How ranks share the gradient.
            compile_: How passes are compiled.
            plan: Who trains on what.
            example: The first sample.
        """
        self.module = loss.module
        self.device = runtime.device
        self.flat = flat
        self.stages = stages
        exact, several = parallel.reduction == "exact", runtime.world_size > 1
        reduction = Reduction()
        if flat is not None:
            self.passes = explicit_passes(loss, flat)
            if several:
                reduction = FlatAllReduce(flat.gradients, DTYPES.get(parallel.compression))
        else:
            model = compile_model(loss, compile_, plan) if compiled else loss
            if several and not exact:
                model = ddp = distribute(
                    model,
                    self.module,
                    runtime=runtime,
                    parallel=parallel,
                    plan=plan,
                    example=example,
                )
                reduction = reduce_with_ddp(ddp, parallel, runtime.world_size, plan.seed)
            self.passes = AutogradPasses(model, self.module, loss.precision.scaler, example)
        if exact:
            reduction = PairwiseTree(
                self.module,
                self.passes,
                runtime,
                shards=parallel.shards,
                seed=plan.seed,
                finds_unused=parallel.find_unused_parameters is True,
            )
        self.reduction = reduction
        self.gradient_scale = reduction.gradient_scale
        self.waits = reduction.waits

    def trained(self) -> list[nn.Parameter]:
        return super().trained() if self.flat is None else [self.flat.as_one]

    def without_autograd(self) -> AbstractContextManager[Any]:
        return super().without_autograd() if self.flat is None else untracked(self.device)

    def stage(self, block: Batch, global_batches: Sequence[GlobalBatch]) -> Iterator[Batch]:
        if not (self.stages and isinstance(self.passes, ExplicitPasses)):
            return super().stage(block, global_batches)
        loss_weight = self.gradient_scale / global_batches[0].size
        self.passes.stage(block.inputs, block.targets, loss_weight, len(global_batches))
        return itertools.repeat(block)  # what is in it has been taken over

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        return self.reduction.micro_batch(global_batch, micro)

    def reduce(self) -> None:
        self.reduction.finish()

    def reduction_state(self) -> dict[str, Any]:
        return self.reduction.state_dict()

    def load_reduction_state(self, state: dict[str, Any]) -> None:
        self.reduction.load_state_dict(state, self.device)


def explicit_passes(loss: LossModule, flat: FlatParameters) -> ExplicitPasses:
    """The passes of a network that `describe` accepts, over its flat parameters."""
    shapes = describe(loss.module)
    assert shapes is not None
    return ExplicitPasses(
        shapes,
        flat,
        normalize=loss.normalize,
        label_smoothing=loss.task.label_smoothing or 0.0,
        precision=loss.precision,
    )
