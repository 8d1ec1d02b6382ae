"""Runs the model on its device: which passes compute gradients, and how ranks share them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.errors import InputError
from configs.schema_execution import CompileConfig, ParallelConfig
from data.loading.loader import zeros_of
from data.loading.order import GlobalBatch, MicroBatch, Plan
from data.samples import Batch
from trainer.backward.autograd import AutogradPasses, LossModule, Passes
from trainer.backward.compiling import compile_if_asked, should_compile
from trainer.backward.explicit.explicit_passes import ExplicitPasses
from trainer.backward.explicit.onednn import keeps_upright
from trainer.backward.explicit.plain_layers import describe
from trainer.engines.compression import reduce_with_ddp
from trainer.engines.reduction import FlatAllReduce, PairwiseTree, Reduction, SingleRank
from trainer.objective.task import Task
from trainer.optim.flat import FlatParameters
from trainer.ranks.precision import DTYPES
from trainer.ranks.runtime import Runtime


class Engine(Protocol):
    """What the step and the checkpoints need of whoever runs the model."""

    module: nn.Module
    """The raw module: its state dict has the keys the user wrote."""
    gradient_scale: float
    """Factor of the loss that undoes an average over ranks."""

    def trained(self) -> list[nn.Parameter]:
        """Whose `.grad` together is the gradient: of this rank, whole or in parts."""
        ...

    def clear(self) -> None:
        """Forget the gradient of the step before."""
        ...

    def micro_batch(
        self, global_batch: GlobalBatch, micro: MicroBatch
    ) -> AbstractContextManager[Any]:
        """Around the forward and backward pass of one micro-batch."""
        ...

    def differentiate(
        self, inputs: Tensor, targets: Tensor, loss_weight: float
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of `loss_weight` times the summed loss; see `passes.Passes`."""
        ...

    def reduce(self) -> None:
        """After the last micro-batch: `.grad` holds the gradient of the whole global batch."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The whole state dict of the raw module; every rank calls it, rank 0 needs the answer."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over a whole state dict, which every rank has."""
        ...

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state dict of the optimizer, parameters numbered as by torch.optim."""
        ...

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Take over what `optimizer_state` gave, on whatever engine and number of ranks."""
        ...

    def reduction_state(self) -> dict[str, Any]:
        """What this rank's reduction remembers from step to step, if anything."""
        ...

    def load_reduction_state(self, state: dict[str, Any]) -> None:
        """Take over what the same rank of as many ranks gave."""
        ...

    def run_along(self, module: nn.Module) -> None:
        """Take part in other ranks' forward pass of `module`, if it needs all ranks."""
        ...


class ReplicatedModel:
    """Every rank holds all weights and all of the optimizer's state, and has passes of its own."""

    module: nn.Module
    passes: Passes

    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def clear(self) -> None:
        self.passes.clear()

    def differentiate(
        self, inputs: Tensor, targets: Tensor, loss_weight: float
    ) -> tuple[Tensor, Tensor]:
        return self.passes(inputs, targets, loss_weight)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        optimizer.load_state_dict(state)

    def reduction_state(self) -> dict[str, Any]:
        return {}

    def load_reduction_state(self, state: dict[str, Any]) -> None:
        pass

    def run_along(self, module: nn.Module) -> None:
        pass


class NativeEngine(ReplicatedModel):
    """Written-out passes where the network allows it, else autograd, with DDP for several ranks."""

    def __init__(
        self,
        loss: LossModule,
        *,
        flat: FlatParameters | None,
        runtime: Runtime,
        parallel: ParallelConfig,
        compile_: CompileConfig,
        plan: Plan,
        example: Batch,
    ) -> None:
        """
        Args:
            loss: The model with its normalisation and loss.
            flat: Its parameters if the passes are to be written out (see `flatten_parameters`).
            runtime: This rank.
            parallel: How ranks share the gradient.
            compile_: Whether autograd's passes are compiled.
            plan: Who trains on what.
            example: A batch as the data set gives it, of one sample or more.
        """
        self.module = loss.module
        self.device = runtime.device
        reduction: Reduction = SingleRank()
        if flat is not None:
            shapes = describe(self.module)
            assert shapes is not None
            self.passes = ExplicitPasses(
                shapes,
                flat,
                normalize=loss.normalize,
                label_smoothing=loss.task.label_smoothing or 0.0,
                precision=loss.precision,
            )
            if runtime.world_size > 1:
                reduction = FlatAllReduce(flat.gradients, DTYPES.get(parallel.compression))
        else:
            model = compile_if_asked(loss, compile_, runtime.device, plan)
            if runtime.world_size > 1 and parallel.reduction == "fast":
                model = ddp = self._distribute(model, runtime, parallel, plan, example)
                reduction = reduce_with_ddp(ddp, parallel, runtime.world_size, plan.seed)
            self.passes = AutogradPasses(model, self.module, loss.precision.scaler)
        if parallel.reduction == "exact":
            reduction = PairwiseTree(
                self.module, self.passes, runtime, shards=parallel.shards, seed=plan.seed
            )
        self.flat = flat
        self.reduction = reduction
        self.gradient_scale = reduction.gradient_scale

    def trained(self) -> list[nn.Parameter]:
        return super().trained() if self.flat is None else [self.flat.whole]

    def _distribute(
        self,
        model: nn.Module,
        runtime: Runtime,
        parallel: ParallelConfig,
        plan: Plan,
        example: Batch,
    ) -> DistributedDataParallel:
        ddp = DistributedDataParallel(
            model,
            device_ids=[runtime.device.index] if runtime.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=plan.micro_batches_per_step == 1,
            bucket_cap_mb=parallel.bucket_mb,
        )
        freeze_buckets(ddp, self.module, plan, example, runtime.device)
        return ddp

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


def freeze_buckets(
    ddp: DistributedDataParallel,
    module: nn.Module,
    plan: Plan,
    example: Batch,
    device: torch.device,
) -> None:
    """Two passes over zeros that leave no trace but DDP's final bucket layout.

    DDP lays its buckets out anew after the first backward pass (with a static graph the second
    one), and with three ranks or more the order of additions depends on the layout: without this
    the first steps after a restart would not have the bits of the same steps in an undisturbed run.
    """
    inputs, targets = zeros_of(example, plan.global_batch(0).micro_batches[0].size, device)
    before = [buffer.clone() for buffer in module.buffers()]
    ddp.train()  # type: ignore[no-untyped-call]
    for _ in range(2):
        ddp(inputs, targets)[0].backward()
    module.zero_grad(set_to_none=True)
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


def flatten_parameters(
    module: nn.Module,
    config: CompileConfig,
    task: Task,
    device: torch.device,
    parallel: ParallelConfig | None = None,
    one_kernel: bool = True,
) -> FlatParameters | None:
    """The parameters in a flat buffer if the passes of this network are to be written out.

    Not for other optimizers than those whose kernel steps the buffer (`one_kernel`): weights in it
    are transposed, LBFGS cannot view them as vectors, and fused kernels would take a state that
    was loaded in another layout for theirs.

    Raises:
        InputError: If `compile.backward: explicit` is asked for and not possible.
    """
    shapes = None
    asked = config.backward == "explicit"
    compiled = should_compile(config, device) and config.enabled != "auto"
    plain = parallel is None or parallel.takes_written_out_passes
    if plain and task.label_smoothing is not None and one_kernel and not compiled:
        shapes = describe(module)
    if asked and shapes is None:
        raise InputError(
            "compile.backward",
            given="explicit",
            expected="a network of Linear, ReLU and Dropout for a classification by cross-entropy, "
            "not compiled, under parallel.strategy ddp, without PowerSGD or checkpointing, and with"
            " sgd, adam or adamw without kwargs and parameter groups",
            remedy="Use --compile.backward auto.",
        )
    if shapes is None or config.backward == "autograd":
        return None
    return FlatParameters([p for s in shapes for p in s.linear.parameters()], keeps_upright)
