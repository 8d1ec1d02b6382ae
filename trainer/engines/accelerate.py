"""The same loop over Hugging Face Accelerate; the only file that imports it.

Every question has one owner (docs/accelerate.md). Whoever asks for FSDP gets the native engine's
sharding: Accelerate's own calls the same `fully_shard`, but averages where the step sums, and wants
the optimizer, its clipping and its checkpoints as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.errors import InputError
from configs.imports import import_extra
from configs.schema_execution import ParallelConfig
from data.loading.order import GlobalBatch, MicroBatch, Plan
from data.samples import Example
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.engines.accelerate_config import MIXED_PRECISION
from trainer.engines.buckets import ddp_mib
from trainer.engines.ddp import freeze_buckets, graph_options
from trainer.engines.engine import Engine
from trainer.engines.unused import check_used
from trainer.ranks.launcher import MPI_SIZES, RANK_VARIABLES
from trainer.ranks.precision import DTYPES
from trainer.ranks.runtime import Runtime


class AccelerateEngine(Engine):
    """Autograd's passes, distributed, synchronised and run backward by an `Accelerator`.

    Numbers are cast where the native engine casts them, in LossModule, and the loss is scaled by
    the run's own GradScaler: the arithmetic is the native engine's, and so are the checkpoints.
    """

    waits = "within the backward pass"

    def __init__(
        self,
        loss: LossModule,
        *,
        runtime: Runtime,
        parallel: ParallelConfig,
        plan: Plan,
        example: Example,
    ) -> None:
        """
        Args:
            loss: The model with its normalisation and loss, perhaps compiled.
            runtime: This rank, within the process group, which Accelerate joins.
            parallel: How ranks share the gradient.
            plan: Who trains on what.
            example: The first sample.

        Raises:
            InputError: If Accelerate is not installed, or does not agree with `runtime`.
        """
        self.module = loss.module
        self.accelerator = build_accelerator(loss, runtime, parallel, plan)
        self.model: nn.Module = self.accelerator.prepare(loss)
        self.gradient_scale = 1.0
        self.checked: list[tuple[str, nn.Parameter]] = []
        """By name; once, since walking a module takes its time."""
        if runtime.world_size > 1:
            assert isinstance(self.model, DistributedDataParallel)
            self.gradient_scale = float(runtime.world_size)  # it averages, we want the sum
            freeze_buckets(self.model, self.module, plan, example, runtime.device)
            if parallel.find_unused_parameters is not True:
                self.checked = list(self.model.module.named_parameters())
        self.passes = AcceleratedPasses(self.model, loss, self.accelerator, example)

    def reduce(self) -> None:
        check_used(self.checked)

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        if micro.ends_global_batch:
            return nullcontext()
        found: AbstractContextManager[Any] = self.accelerator.no_sync(self.model)
        return found


def build_sharded(loss: LossModule, **parts: Any) -> Engine:
    """Ranks with parts of the model, under Accelerate; `parts` are what ShardedEngine takes."""
    from trainer.engines.fsdp import ShardedEngine  # slow to import

    accelerator = build_accelerator(loss, parts["runtime"], parts["parallel"], parts["plan"])
    engine = ShardedEngine(loss, **parts)
    engine.passes = AcceleratedPasses(loss, loss, accelerator, parts["example"])
    return engine


class AcceleratedPasses(AutogradPasses):
    """Autograd, with the backward pass in Accelerate's hands."""

    def __init__(
        self, model: nn.Module, loss: LossModule, accelerator: Any, example: Example
    ) -> None:
        super().__init__(model, loss.module, loss.precision.scaler, example)
        self.accelerator = accelerator

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)


def build_accelerator(
    loss: LossModule, runtime: Runtime, parallel: ParallelConfig, plan: Plan
) -> Any:
    """An `Accelerator` for this rank, which must see the ranks and the device as `runtime` does.

    Raises:
        InputError: If it does not, or refuses by itself.
    """
    import_extra("accelerate", "accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import (
        AutocastKwargs,
        DistributedDataParallelKwargs,
        GradientAccumulationPlugin,
    )

    names = {DTYPES[name]: theirs for name, theirs in MIXED_PRECISION.items()}
    try:
        with _ranks_in_environment(runtime):
            # Its state is one per process; a process may train several runs.
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            accelerator = Accelerator(
                cpu=runtime.device.type == "cpu",
                mixed_precision=names[loss.precision.dtype],
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[
                    AutocastKwargs(enabled=False),  # LossModule casts, and only the model
                    DistributedDataParallelKwargs(
                        gradient_as_bucket_view=True,
                        **graph_options(parallel, plan),
                        bucket_cap_mb=ddp_mib(parallel),
                    ),
                ],
            )
    except (ImportError, NotImplementedError, ValueError) as error:
        raise InputError(f"Accelerate refuses: {' '.join(str(error).split())[:400]}") from None
    found = (
        accelerator.distributed_type.value in ("NO", "MULTI_CPU", "MULTI_GPU"),
        accelerator.num_processes,
        accelerator.process_index,
        accelerator.device,
    )
    rank = runtime.rank if runtime.world_size > 1 else 0
    if found != (True, runtime.world_size, rank, runtime.device):
        raise InputError(
            "Accelerate",
            given=f"{accelerator.distributed_type.value}: rank {accelerator.process_index} of "
            f"{accelerator.num_processes} on {accelerator.device}",
            expected=f"rank {rank} of {runtime.world_size} on {runtime.device}, by DDP",
            remedy="Use --parallel.engine native on this machine.",
        )
    # The run's own scaler, which the step unscales, steps and saves; Accelerate scales the loss.
    accelerator.scaler = loss.precision.scaler if loss.precision.scaler.is_enabled() else None
    return accelerator


@contextmanager
def _ranks_in_environment(runtime: Runtime) -> Iterator[None]:
    """The variables that Accelerate reads, as `runtime` has them: srun and MPI set others.

    A single rank is told nothing: Accelerate would begin a process group of one.
    """
    before = dict(os.environ)
    for name in (*RANK_VARIABLES, *MPI_SIZES):
        os.environ.pop(name, None)
    if runtime.world_size > 1:
        index = runtime.local_rank if runtime.device.index is None else runtime.device.index
        ranks = (runtime.rank, index, runtime.world_size, runtime.local_world_size)
        os.environ.update(zip(RANK_VARIABLES, map(str, ranks), strict=True))
        os.environ.setdefault("MASTER_ADDR", "unused")  # the process group exists already
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # it would want to wrap the optimizer as well
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(runtime.device)
    os.environ["ACCELERATE_DYNAMO_BACKEND"] = "no"
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # it would choose others
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
