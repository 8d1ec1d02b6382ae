"""Everything around a TrainStep on a few samples, and equality to the last bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch._dynamo  # the first optimizer imports it, and it sets an environment variable
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import RunConfig
from configs.schema_execution import CompileConfig, ParallelConfig
from configs.schema_training import OptimizerConfig, PrecisionConfig, ScheduleConfig
from data.augment import as_is
from data.collate import stack
from data.datasets import ArrayDataset, Datasets
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader
from data.normalize import Normalize
from data.samples import Example
from trainer.backward.autograd import LossModule
from trainer.checkpoints.state import Progress
from trainer.components import build_optimizer_and_kernel
from trainer.engines.native import NativeEngine
from trainer.execution import decide
from trainer.networks.mlp import MLP
from trainer.objective.meter import Meter
from trainer.objective.selection import Selection
from trainer.objective.tasks import classification
from trainer.optim.average import EMA
from trainer.optim.schedule import PureSchedule, Schedule, build_schedule
from trainer.ranks.precision import build_precision
from trainer.ranks.runtime import Runtime
from trainer.step import TrainStep
from trainer.ways import Subject

CPU = torch.device("cpu")
BATCH = 16
TOO_LARGE, MODERATE = 1e30, 1024.0
"""Loss scales with which fp16 gradients do and do not overflow."""


@dataclass
class Rig:
    """Everything around a TrainStep, without a run directory."""

    data: ArrayDataset
    plan: Plan
    loader: ResidentLoader
    module: nn.Module
    normalize: Normalize
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: EMA | None
    meter: Meter
    progress: Progress
    step: TrainStep

    def drive(self, count: int = 1) -> None:
        """Train on the next `count` global batches."""
        batches = self.loader.stream(self.progress.global_batches)
        for _ in range(count):
            self.step([self.plan.global_batch(self.progress.global_batches)], batches)

    def rate(self, step: int) -> float:
        assert isinstance(self.schedule, PureSchedule)
        return self.schedule(step)

    def set_scale(self, scale: float) -> None:
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale})

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def gradient(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """All samples of a global batch, picked from the order of its epoch here and now."""
        epoch, step = divmod(index, self.plan.epoch_schedule.steps(0))
        picked = self.plan.order(epoch)[step * BATCH : (step + 1) * BATCH].to(
            self.data.inputs.device
        )
        return self.data.inputs[picked], self.data.targets[picked]


def make(
    *,
    num_samples: int = 37,
    micro: int | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    init_scale: float = MODERATE,
    growth_interval: int = 2000,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    lr: float = 0.1,
    kwargs: dict[str, Any] | None = None,
    decay_all: bool = True,
    layer_decay: float | None = None,
    schedule: ScheduleConfig | None = None,
    dropout: float = 0.0,
    batch_norm: bool = False,
    hidden: int | tuple[int, ...] = 8,
    reduction: Literal["fast", "exact"] = "fast",
    clip: float | None = None,
    smoothing: float = 0.0,
    decay: float | None = None,
    warmup: int = 0,
    device: torch.device = CPU,
    backward: Literal["auto", "autograd", "explicit"] = "auto",
    runtime: Runtime | None = None,
    parallel: ParallelConfig | None = None,
    network: Callable[[], nn.Module] | None = None,
    recorded: bool = False,
) -> Rig:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (num_samples, 1, 3, 2), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 5, (num_samples,), generator=generator)
    data = ArrayDataset(inputs, targets).to(device)
    facts = Datasets(
        train=data,
        test=data,
        input_shape=(1, 3, 2),
        num_classes=5,
        mean=(0.3,),
        std=(0.4,),
        scale=255.0,
    )
    runtime = runtime or Runtime(launcher="python", device=device)
    parallel = parallel or ParallelConfig(reduction=reduction, shards=4)
    plan = Plan(
        num_samples=num_samples,
        global_batch_size=BATCH,
        micro_batch_size=micro,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=3,
        shards=parallel.shards if reduction == "exact" else None,
    )
    torch.manual_seed(0)
    widths = (hidden,) if isinstance(hidden, int) else hidden
    module: nn.Module = (
        MLP((1, 3, 2), 5, hidden=widths, dropout=dropout, batch_norm=batch_norm)
        if network is None
        else network()
    ).to(device)
    ema = EMA(module, decay) if decay is not None else None
    precision = build_precision(
        PrecisionConfig(dtype=dtype, init_scale=init_scale, growth_interval=growth_interval), device
    )
    task = classification(label_smoothing=smoothing)
    normalize, compile_ = Normalize(facts, device), CompileConfig(enabled=False, backward=backward)
    config = OptimizerConfig(
        name=optimizer,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        kwargs=kwargs or {},
        decay_norms_and_biases=decay_all,
        layer_decay=layer_decay,
    )
    run = RunConfig(
        optimizer=config,
        precision=PrecisionConfig(dtype=dtype),
        compile=compile_,
        parallel=parallel,
    )
    subject = Subject(
        model=module,
        task=task,
        augment=as_is,
        plan=plan,
        input_shape=data.inputs.shape[1:],
        device=device,
        world_size=runtime.world_size,
        resident=(True, "it is small"),
    )
    execution = decide(run, subject)
    flat, built, kernel = build_optimizer_and_kernel(run, runtime, module, precision, execution)
    engine = NativeEngine(
        LossModule(module, normalize=normalize, precision=precision, task=task),
        flat=flat,
        stages=execution.stages,
        runtime=runtime,
        parallel=parallel,
        plan=plan,
        example=Example(data[0], stack),
        recorded=recorded,
    )
    rates = build_schedule(
        schedule or ScheduleConfig(name="cosine", warmup_steps=warmup),
        optimizer=built,
        peak=config.lr,
        total_steps=20,
        epoch_schedule=plan.epoch_schedule,
        selection=Selection("accuracy", True),
        evaluate_every=1,
    )
    meter, progress = Meter(), Progress()
    step = TrainStep(
        engine=engine,
        optimizer=built,
        kernel=kernel,
        schedule=rates,
        precision=precision,
        augment=as_is,
        average=ema,
        meter=meter,
        progress=progress,
        clip_norm=clip,
        runtime=runtime,
    )
    loader = ResidentLoader(data, {"test": data}, plan=plan, device=device)
    return Rig(
        data,
        plan,
        loader,
        module,
        normalize,
        built,
        rates,
        precision.scaler,
        ema,
        meter,
        progress,
        step,
    )


def plain_gradient(rig: Rig, index: int, smoothing: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """Mean loss of the concatenated global batch and its gradient, by autograd alone."""
    module = copy.deepcopy(rig.module)
    module.zero_grad()
    inputs, targets = rig.batch(index)
    loss = F.cross_entropy(module(rig.normalize(inputs)), targets, label_smoothing=smoothing)
    loss.backward()
    return loss.detach(), [p.grad for p in module.parameters() if p.grad is not None]


def assert_close(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Equal structure, equal values, equal tensors to the last bit."""
    if isinstance(expected, Tensor):
        assert found.dtype is expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same_bits(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            assert_same_bits(mine, theirs)
    else:
        assert found == expected
