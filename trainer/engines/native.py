"""The project's own engine: written-out passes or autograd, and one gradient of all ranks."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from configs.schema_execution import ParallelConfig
from data.loading.order import GlobalBatch, MicroBatch, Plan
from data.samples import Batch, Example
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.plain_layers import describe
from trainer.engines.bucket_hooks import reduce_with_ddp
from trainer.engines.buckets import bucket_mib, ddp_mib, flat_parts, is_free
from trainer.engines.ddp import EXECUTED_BEFORE_RECORDING, distribute
from trainer.engines.engine import Engine
from trainer.engines.flat_all_reduce import FlatAllReduce
from trainer.engines.reduction import PairwiseTree, Reduction
from trainer.optim.flat import FlatParameters, untracked
from trainer.ranks.neighbour import Neighbour, meet_neighbour
from trainer.ranks.precision import DTYPES
from trainer.ranks.runtime import Runtime

Layout = float | list[int]
"""In what parts a gradient travels: the size of DDP's buckets in MiB, or the layers with which
parts of a flat one begin."""


class NativeEngine(Engine):
    """A whole copy of the model on every rank, and one gradient of all of them."""

    def __init__(
        self,
        loss: LossModule,
        *,
        flat: FlatParameters | None,
        stages: bool,
        runtime: Runtime,
        parallel: ParallelConfig,
        plan: Plan,
        example: Example,
        recorded: bool = False,
    ) -> None:
        """
        Args:
            loss: The model with its normalisation and loss, perhaps compiled.
            flat: The parameters of the model, if the passes are written out; None: autograd's.
            stages: Whether written-out passes make the batches of several steps ready together.
            runtime: This rank.
            parallel: How ranks share the gradient.
            plan: Who trains on what.
            example: The first sample.
            recorded: Whether steps will be recorded as CUDA graphs.
        """
        self.module = loss.module
        self.runtime = runtime
        self.parallel = parallel
        self.flat = flat
        self.stages = stages
        self.reduction = Reduction()
        self.layout: Layout | None = None
        self.lay_out: Callable[[Any], None] = lambda layout: None
        if flat is not None:
            self.passes = passes = explicit_passes(loss, flat)
            self.lay_out = partial(self._lay_out_flat, passes, flat)
        else:
            scaler = loss.precision.scaler
            self.passes = AutogradPasses(loss, self.module, scaler, example)
            self.lay_out = partial(self._lay_out_ddp, loss, scaler, plan, example, recorded)
        if parallel.reduction == "exact":
            self.reduction = PairwiseTree(
                self.module,
                self.passes,
                runtime,
                shards=parallel.shards,
                seed=plan.seed,
                finds_unused=parallel.find_unused_parameters is True,
            )
        elif runtime.in_group:
            self.neighbour = self._meet_neighbour()
            self._choose(self._first_layout(plan))
        self.gradient_scale = self.reduction.gradient_scale
        self.waits = self.reduction.waits

    def _meet_neighbour(self) -> Neighbour | None:
        """Who sums gradients with this rank as they are, if there is one."""
        plain = all(parameter.dtype == torch.float32 for parameter in self.trained())
        sparse = any(getattr(part, "sparse", False) for part in self.module.modules())
        if not plain or sparse or self.parallel.compression != "none":
            return None
        return meet_neighbour(self.runtime, sum(p.numel() for p in self.trained()))

    def _first_layout(self, plan: Plan) -> Layout:
        if self.flat is not None:
            assert isinstance(self.passes, ExplicitPasses)
            if self.neighbour is not None and self.parallel.bucket_mb == "auto":
                return [0]  # nothing is under way, behind which something could be computed
            return flat_layout(self.passes, self.flat, self.parallel, self.runtime, plan)
        self.warmup_steps = EXECUTED_BEFORE_RECORDING
        if self.parallel.find_unused_parameters is True:
            self.against_recording = "ranks ask each other which parameters were used"
        if self.neighbour is not None:
            return ddp_mib(self.parallel)
        num_bytes = sum(parameter.nbytes for parameter in self.trained())
        return bucket_mib(self.parallel, self.runtime, num_bytes)

    def _choose(self, layout: Layout) -> None:
        self.layout = layout
        self.lay_out(layout)

    def _lay_out_flat(
        self, passes: ExplicitPasses, flat: FlatParameters, layers: Sequence[int]
    ) -> None:
        starts = {layer: flat.starts[2 * layer] for layer in layers}  # weight, bias, weight, ...
        dtype = DTYPES.get(self.parallel.compression)
        self.reduction = reduction = FlatAllReduce(
            flat.gradients, dtype, [*starts.values()], self.neighbour
        )
        passes.in_parts(starts, reduction.ready)

    def _lay_out_ddp(
        self,
        model: nn.Module,
        scaler: Any,
        plan: Plan,
        example: Example,
        recorded: bool,
        bucket_mib: float,
    ) -> None:
        self.passes = AutogradPasses(model, self.module, scaler, example)
        self.reduction = Reduction()
        gc.collect()  # a DDP that was here before takes its hooks along
        ddp = distribute(
            model,
            self.module,
            runtime=self.runtime,
            parallel=self.parallel,
            bucket_mib=bucket_mib,
            plan=plan,
            example=example,
            recorded=recorded,
        )
        world_size, seed = self.runtime.world_size, plan.seed
        self.reduction = reduce_with_ddp(ddp, self.parallel, world_size, seed, self.neighbour)
        self.passes = AutogradPasses(ddp, self.module, scaler, example)

    def trained(self) -> list[nn.Parameter]:
        return super().trained() if self.flat is None else [self.flat.as_one]

    def without_autograd(self) -> AbstractContextManager[Any]:
        if self.flat is None:
            return super().without_autograd()
        return untracked(self.runtime.device)

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

    def abandon(self) -> None:
        if isinstance(self.passes, ExplicitPasses):
            self.passes.staged = None
        if self.layout is not None:
            self._choose(self.layout)

    def reduction_state(self) -> dict[str, Any]:
        state = self.reduction.state_dict()
        if self._is_part_of_the_run:
            state["layout"] = self.layout
        return state

    def load_reduction_state(self, state: dict[str, Any]) -> None:
        layout = state.get("layout")
        if self._is_part_of_the_run and layout not in (None, self.layout):
            self._choose(layout)
        self.reduction.load_state_dict(state, self.runtime.device)

    @property
    def _is_part_of_the_run(self) -> bool:
        """Whether bits depend on a layout that was measured, and may be another one next time."""
        return self.runtime.world_size > 2 and is_free(self.parallel, self.runtime)


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


def flat_layout(
    passes: ExplicitPasses,
    flat: FlatParameters,
    parallel: ParallelConfig,
    runtime: Runtime,
    plan: Plan,
) -> list[int]:
    """The layers with which the parts of a flat gradient begin."""
    largest = -(-plan.largest_global_batch.size // runtime.world_size)
    return flat_parts(
        parallel,
        runtime,
        gradients=flat.gradients,
        starts=flat.starts[::2],
        first_product=passes.first_product(min(largest, plan.micro_batch_size or largest)),
    )
