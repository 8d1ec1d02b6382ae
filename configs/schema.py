"""The one description of a run: frozen dataclasses that validate themselves.

Every field carries one sentence, which `--help` prints. Keys are validated where they live and
before any device is touched. (No `slots`: jsonargparse reads nested defaults through `vars()`.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from configs.errors import InputError


def _expect(config: object, key: str, holds: bool, expected: str, remedy: str = "") -> None:
    if not holds:
        given = getattr(config, key.rpartition(".")[2])
        raise InputError(key, given=given, expected=expected, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = "mnist"
    """Catalogue name (mnist, fashion_mnist, kmnist), `idx` for any four IDX files, or an import
    path `package.module:attribute`."""
    root: str | None = None
    """Folder that holds the files, directly or in a subfolder named after the data set."""
    download: bool = True
    """Fetch a catalogue data set that is not on this machine."""
    verify: bool = True
    """Refuse files whose SHA-256 is not the catalogue's."""
    placement: Literal["auto", "host", "device"] = "auto"
    """Keep the data set in host memory or on the device; auto: device if it fits and has no
    workers."""
    workers: int = 0
    """DataLoader worker processes per rank; in-memory data needs none."""
    prefetch_factor: int = 2
    """Micro-batches each worker prepares ahead."""
    drop_last: bool = False
    """Leave out the last, short global batch of an epoch."""

    def __post_init__(self) -> None:
        _expect(self, "data.workers", self.workers >= 0, "0 or more")
        _expect(self, "data.prefetch_factor", self.prefetch_factor >= 1, "1 or more")
        _expect(
            self,
            "data.workers",
            not (self.placement == "device" and self.workers),
            "0 with data.placement=device",
            "Data that lives on the device is gathered there: drop the workers or the placement.",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = "mlp"
    """Registered name (mlp) or an import path `package.module:attribute`."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model, such as {hidden: [256, 128], dropout: 0.2}."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: str = "adam"
    """Registered name: sgd, adam, adamw."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """L2 penalty (sgd, adam) or decoupled decay (adamw)."""
    momentum: float = 0.9
    """Momentum of sgd."""
    nesterov: bool = False
    """Nesterov momentum for sgd."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running square of adam and adamw."""
    eps: float = 1e-8
    """Term added to the denominator of adam and adamw."""

    def __post_init__(self) -> None:
        _expect(self, "optimizer.lr", 0 < self.lr < float("inf"), "a number above 0")
        _expect(self, "optimizer.weight_decay", 0 <= self.weight_decay < float("inf"), "0 or more")
        _expect(self, "optimizer.momentum", 0 <= self.momentum < 1, "0 <= momentum < 1")
        _expect(
            self,
            "optimizer.nesterov",
            not self.nesterov or self.momentum > 0,
            "a momentum above 0 with it",
        )
        _expect(
            self,
            "optimizer.betas",
            all(0 <= beta < 1 for beta in self.betas),
            "two numbers, each 0 <= beta < 1",
        )
        _expect(self, "optimizer.eps", 0 < self.eps < float("inf"), "a number above 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: str = "constant"
    """Shape after the warm-up: constant, cosine, one_cycle, step, exponential."""
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
        _expect(self, "schedule.warmup_steps", self.warmup_steps >= 0, "0 steps or more")
        for key in ("final_fraction", "initial_fraction"):
            value = getattr(self, key)
            _expect(self, f"schedule.{key}", 0 <= value <= 1, "a fraction from 0 to 1")
        _expect(
            self, "schedule.peak_fraction", 0 < self.peak_fraction < 1, "a fraction between 0 and 1"
        )
        _expect(self, "schedule.every_epochs", self.every_epochs > 0, "above 0")
        _expect(self, "schedule.gamma", 0 < self.gamma <= 1, "0 < gamma <= 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int = 10
    """Passes over the training set."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, if that comes before the epochs end."""
    global_batch_size: int = 64
    """Samples per optimizer step, over all ranks; the world size never changes it."""
    micro_batch_size: int | None = None
    """Most samples a rank sends through the model at once; fewer than its share means gradient
    accumulation. Default: its whole share."""
    clip_norm: float | None = None
    """Clip the gradient to this global L2 norm."""
    label_smoothing: float = 0.0
    """Label smoothing of the training loss."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay and evaluate it."""

    def __post_init__(self) -> None:
        _expect(self, "train.epochs", self.epochs >= 1, "1 or more")
        _expect(
            self,
            "train.max_steps",
            self.max_steps is None or self.max_steps >= 1,
            "1 or more, or null",
        )
        size, micro = self.global_batch_size, self.micro_batch_size
        _expect(self, "train.global_batch_size", size >= 1, "1 or more")
        _expect(self, "train.micro_batch_size", micro is None or micro >= 1, "1 or more, or null")
        _expect(
            self,
            "train.micro_batch_size",
            micro is None or size % micro == 0,
            f"a divisor of train.global_batch_size={size}",
            "Every micro-batch of a full step has the same shape: choose one of "
            f"{_divisors(size)}.",
        )
        _expect(
            self,
            "train.clip_norm",
            self.clip_norm is None or 0 < self.clip_norm < float("inf"),
            "a number above 0, or null",
        )
        _expect(
            self, "train.label_smoothing", 0 <= self.label_smoothing < 1, "0 <= label_smoothing < 1"
        )
        _expect(
            self,
            "train.ema_decay",
            self.ema_decay is None or 0 < self.ema_decay < 1,
            "0 < ema_decay < 1, or null",
        )


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
        _expect(
            self, "precision.init_scale", 0 < self.init_scale < 2.0**127, "above 0, below 2**127"
        )
        _expect(self, "precision.growth_interval", self.growth_interval >= 1, "1 or more")


@dataclass(frozen=True, kw_only=True)
class CompileConfig:
    enabled: bool | Literal["auto"] = "auto"
    """torch.compile the model; auto: on a GPU yes, on a CPU no."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    """Mode of torch.compile."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    engine: Literal["native"] = "native"
    """Who moves the model to its devices and runs it."""
    strategy: Literal["ddp"] = "ddp"
    """How several ranks share the model."""
    reduction: Literal["fast", "exact"] = "fast"
    """fast: all-reduce. exact: a fixed pairwise tree, bit-identical on 1, 2, 4, ... ranks."""
    shards: int = 8
    """Fixed shards of the global batch under exact reduction, a power of two."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: a GPU if there is one."""
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Communication between ranks; auto: nccl on GPUs, gloo on CPUs."""
    threads: int | None = None
    """CPU threads per rank; default: the launcher's or torch's, and 1 under exact reduction."""
    bucket_mb: float = 25.0
    """Size of DDP's gradient buckets in MiB."""
    drift_every_steps: int | None = None
    """Compare a digest of the weights of all ranks every this many steps; null: never."""
    init_timeout_seconds: float = 600.0
    """How long ranks wait for each other to appear and to load their data."""
    timeout_seconds: float = 120.0
    """How long a rank waits for the others inside training before it gives up."""

    def __post_init__(self) -> None:
        shards = self.shards
        _expect(
            self,
            "parallel.shards",
            shards >= 1 and shards & (shards - 1) == 0,
            "a power of two: 1, 2, 4, 8, ...",
        )
        _expect(
            self,
            "parallel.threads",
            self.threads is None or self.threads >= 1,
            "1 or more, or null",
        )
        every = self.drift_every_steps
        _expect(
            self, "parallel.drift_every_steps", every is None or every >= 1, "1 or more, or null"
        )
        _expect(self, "parallel.bucket_mb", 0 < self.bucket_mb < float("inf"), "above 0")
        for key in ("init_timeout_seconds", "timeout_seconds"):
            value = getattr(self, key)
            _expect(self, f"parallel.{key}", 0 < value < float("inf"), "a number above 0")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int | None = None
    """Save every this many optimizer steps, besides the epochs."""
    every_epochs: int | None = 1
    """Save every this many epochs; null: only every_steps and the end."""
    keep: int = 3
    """How many of the newest checkpoints to keep, besides the best."""
    resume: str = "auto"
    """auto: continue the run in its directory if there is one. never: start afresh. PATH: continue
    from that checkpoint."""

    def __post_init__(self) -> None:
        _expect(
            self,
            "checkpoint.every_steps",
            self.every_steps is None or self.every_steps >= 1,
            "1 or more, or null",
        )
        _expect(
            self,
            "checkpoint.every_epochs",
            self.every_epochs is None or self.every_epochs >= 1,
            "1 or more, or null",
        )
        _expect(
            self,
            "checkpoint.keep",
            self.keep >= 2,
            "2 or more",
            "With one checkpoint, a save that goes wrong would leave none.",
        )
        _expect(self, "checkpoint.resume", bool(self.resume), "auto, never or a path")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    every_epochs: int | None = 1
    """Evaluate on the test set every this many epochs, and always at the end; null: only then."""
    batch_size: int = 1000
    """Samples per evaluation batch."""

    def __post_init__(self) -> None:
        _expect(
            self,
            "evaluate.every_epochs",
            self.every_epochs is None or self.every_epochs >= 1,
            "1 or more, or null",
        )
        _expect(self, "evaluate.batch_size", self.batch_size >= 1, "1 or more")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    mode: Literal["online", "offline", "disabled"] = "disabled"
    """Send the run to Weights & Biases; WANDB_MODE overrides a mode that is not disabled."""
    project: str = "convoy"
    """Project the run belongs to."""
    entity: str | None = None
    """User or team that owns the project."""
    group: str | None = None
    """Group of runs that belong together, such as seeds of one config."""
    job_type: str | None = None
    """Kind of run within its group."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    every_steps: int = 50
    """Optimizer steps between two records; only then does the host wait for the device."""
    progress: Literal["auto", "rich", "plain", "off"] = "auto"
    """Live display, plain lines or neither; auto: live on a terminal, plain lines elsewhere."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        _expect(self, "logging.every_steps", self.every_steps >= 1, "1 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run, from its first weight to its last record."""

    name: str = "run"
    """Name of the run; its directory is OUTPUT_DIR/NAME."""
    seed: int = 0
    """Seed of the initial weights, the data order and dropout."""
    output_dir: str = "runs"
    """Folder of run directories."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to train on and where it lies."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate as a function of the step."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch and regularisation of training."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats."""
    compile: CompileConfig = field(default_factory=CompileConfig)
    """torch.compile."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Ranks, devices and the reduction of gradients."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save and what to continue from."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation on the test set."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is recorded and shown."""

    def __post_init__(self) -> None:
        _expect(
            self,
            "name",
            bool(self.name) and "/" not in self.name and self.name not in (".", ".."),
            "a plain folder name",
            "Use --output_dir for the folder above it.",
        )
        _expect(self, "output_dir", bool(self.output_dir), "a folder")
        _expect(self, "seed", 0 <= self.seed < 2**63, "a whole number from 0 to 2**63 - 1")
        if self.parallel.reduction == "exact":
            size, shards = self.train.global_batch_size, self.parallel.shards
            _expect(
                self.train,
                "train.global_batch_size",
                size % shards == 0,
                f"a multiple of parallel.shards={shards} under exact reduction",
                "Change either one.",
            )


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:6], "...", *found[-3:]])
