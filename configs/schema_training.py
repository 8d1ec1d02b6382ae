"""How it is learned: optimizer, learning rate, steps and precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from configs.errors import expect
from configs.fields import execution


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str = "adam"
    """sgd, adam, adamw, another class of torch.optim (in any case), or an import path."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the optimizer's constructor, such as {alpha: 0.9} for rmsprop."""
    decay_norms_and_biases: bool = True
    """Whether weight decay applies to biases, norms and other vectors too."""
    layer_decay: float | None = None
    """Factor of the learning rate for every layer further away from the output."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Factors of the learning rate of some parameters, by pattern of their names, such as
    {backbone.*: 0.1}; the first that fits holds."""
    groups: str | None = None
    """Import path of a function model -> parameter groups, as torch.optim takes them."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov momentum for sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of adam and adamw."""
    eps: float = 1e-8
    """Term added to the denominator of adam and adamw."""

    def __post_init__(self) -> None:
        expect(self, "optimizer.lr", 0 < self.lr < float("inf"), "a number above 0")
        expect(self, "optimizer.weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more")
        expect(self, "optimizer.momentum", 0 <= self.momentum < 1, "0 <= momentum < 1")
        expect(
            self,
            "optimizer.nesterov",
            not self.nesterov or self.momentum > 0,
            "a momentum above 0 with it",
        )
        expect(
            self,
            "optimizer.betas",
            all(0 <= beta < 1 for beta in self.betas),
            "two numbers, each 0 <= beta < 1",
        )
        expect(self, "optimizer.eps", 0 < self.eps < float("inf"), "a number above 0")
        decay = self.layer_decay
        expect(
            self,
            "optimizer.layer_decay",
            decay is None or 0 < decay <= 1,
            "0 < layer_decay <= 1, or null",
        )
        expect(
            self,
            "optimizer.lr_factors",
            all(0 < factor < float("inf") for factor in self.lr_factors.values()),
            "{pattern: factor} with factors above 0",
            "What is not to be trained is named by model.freeze.",
        )
        own = [key for key in ("lr", "weight_decay", "params") if key in self.kwargs]
        expect(
            self,
            "optimizer.kwargs",
            not own,
            f"no {' and no '.join(own)} in it",
            "optimizer.lr and optimizer.weight_decay are keys of their own.",
        )
        expect(
            self,
            "optimizer.groups",
            self.groups is None
            or (self.decay_norms_and_biases and decay is None and not self.lr_factors),
            "null with optimizer.decay_norms_and_biases=false, optimizer.layer_decay or "
            "optimizer.lr_factors",
            "Groups of your own say it all.",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: str = "constant"
    """constant, cosine, one_cycle, step, exponential, a class of torch.optim.lr_scheduler (in any
    case), or an import path."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of a scheduler of torch's, such as {step_size: 5, gamma: 0.5} for StepLR."""
    interval: Literal["step", "epoch"] = "step"
    """When a scheduler of torch's is stepped (ReduceLROnPlateau: always after evaluations)."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up from lr / warmup_steps to lr."""
    final_fraction: float = 0.0
    """Learning rate at the end as a fraction of lr (cosine, one_cycle)."""
    peak_fraction: float = 0.3
    """Part of the run spent rising (one_cycle)."""
    initial_fraction: float = 0.04
    """Learning rate at the start as a fraction of lr (one_cycle)."""
    every_epochs: float = 3.0
    """Epochs between two drops (step)."""
    gamma: float = 0.1
    """Factor of each drop (step), or of each epoch (exponential)."""

    def __post_init__(self) -> None:
        expect(self, "schedule.warmup_steps", self.warmup_steps >= 0, "0 steps or more")
        for key in ("final_fraction", "initial_fraction"):
            value = getattr(self, key)
            expect(self, f"schedule.{key}", 0 <= value <= 1, "a fraction from 0 to 1")
        expect(
            self, "schedule.peak_fraction", 0 < self.peak_fraction < 1, "a fraction between 0 and 1"
        )
        expect(self, "schedule.every_epochs", self.every_epochs > 0, "above 0")
        expect(self, "schedule.gamma", 0 < self.gamma <= 1, "0 < gamma <= 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int = execution(10)
    """Passes over the training set."""
    max_steps: int | None = execution(None)
    """Stop after this many optimizer steps, if that comes before the epochs end."""
    global_batch_size: int = 64
    """Samples per optimizer step, over all ranks; the world size never changes it."""
    batch_schedule: dict[int, int] = field(default_factory=dict)
    """Another global batch size from an epoch on (counted from 1), such as {5: 128, 9: 256}: with
    train.micro_batch_size a schedule of gradient accumulation."""
    micro_batch_size: int | None = execution(None)
    """Most samples a rank sends through the model at once; a rank with more of a global batch
    accumulates gradients. Default: no limit."""
    auto_batch: bool = execution(False)
    """Find the largest micro-batch that fits into the memory of every rank; the global batch
    stays."""
    clip_norm: float | None = None
    """Clip the gradient to this global L2 norm."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay and evaluate it."""
    swa_from_epoch: int | None = None
    """Average the weights at the ends of the epochs from this one on (counted from 1), all alike,
    and evaluate the average."""
    patience: int | None = execution(None)
    """Stop after this many evaluations in a row without a better one; null: never."""
    min_gain: float = execution(0.0)
    """How much better an evaluation must be for `train.patience` to start anew."""

    def __post_init__(self) -> None:
        expect(self, "train.epochs", self.epochs >= 1, "1 or more")
        expect(
            self,
            "train.max_steps",
            self.max_steps is None or self.max_steps >= 1,
            "1 or more, or null",
        )
        micro, common = self.micro_batch_size, math.gcd(*self.batch_sizes)
        expect(self, "train.global_batch_size", self.global_batch_size >= 1, "1 or more")
        for epoch, size in self.batch_schedule.items():
            expect(
                self,
                "train.batch_schedule",
                epoch >= 2 and size >= 1,
                "{epoch: samples} with epochs from 2 on and 1 sample or more",
                "The batches of the first epoch are train.global_batch_size.",
            )
        expect(self, "train.micro_batch_size", micro is None or micro >= 1, "1 or more, or null")
        expect(
            self,
            "train.micro_batch_size",
            micro is None or common % micro == 0,
            f"a divisor of train.global_batch_size={self.global_batch_size}"
            + ("" if not self.batch_schedule else " and of every size in train.batch_schedule"),
            "Every micro-batch of a full step has the same shape: choose one of "
            f"{_divisors(common)}.",
        )
        expect(
            self,
            "train.clip_norm",
            self.clip_norm is None or 0 < self.clip_norm < float("inf"),
            "a number above 0, or null",
        )
        expect(
            self, "train.label_smoothing", 0 <= self.label_smoothing < 1, "0 <= label_smoothing < 1"
        )
        expect(
            self,
            "train.ema_decay",
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "0 < ema_decay < 1, or null",
        )
        for key in ("swa_from_epoch", "patience"):
            value = getattr(self, key)
            expect(self, f"train.{key}", value is None or value >= 1, "1 or more, or null")
        expect(
            self,
            "train.swa_from_epoch",
            self.swa_from_epoch is None or self.ema_decay is None,
            "null with train.ema_decay",
            "One average is evaluated: choose either.",
        )
        expect(self, "train.min_gain", 0 <= self.min_gain < float("inf"), "0 or more")

    @property
    def batch_sizes(self) -> list[int]:
        """Those of all epochs."""
        return [self.global_batch_size, *self.batch_schedule.values()]

    @property
    def batch_stages(self) -> tuple[tuple[int, int], ...]:
        """The schedule in order, with epochs counted from 0."""
        return tuple((epoch - 1, size) for epoch, size in sorted(self.batch_schedule.items()))


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of forward and loss; weights stay fp32. fp16 adds a GradScaler."""
    matmul: Literal["highest", "high", "medium"] = "highest"
    """Inner precision of fp32 matrix products on the GPU; high allows TF32."""
    init_scale: float = 65536.0
    """First loss scale of the GradScaler (fp16)."""
    growth_interval: int = 2000
    """Finite steps after which the GradScaler doubles its scale (fp16)."""

    def __post_init__(self) -> None:
        expect(
            self, "precision.init_scale", 0 < self.init_scale < 2.0**127, "above 0, below 2**127"
        )
        expect(self, "precision.growth_interval", self.growth_interval >= 1, "1 or more")


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:6], "...", *found[-3:]])
