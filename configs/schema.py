"""The one description of a run: frozen dataclasses that validate themselves.

Every field carries one sentence, which `--help all` prints, and says whether it defines the
mathematics of the run or only how it is executed (`configs/fields.py`). Keys are validated where
they live and before any device is touched. (No `slots`: jsonargparse reads nested defaults through
`vars()`.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from configs.errors import InputError, expect
from configs.fields import EXECUTION, execution
from configs.schema_execution import CompileConfig, DryRunConfig, ParallelConfig, ProfileConfig
from configs.schema_model import ModelConfig, TaskConfig
from configs.schema_records import CheckpointConfig, EvaluateConfig, LoggingConfig
from configs.schema_training import OptimizerConfig, PrecisionConfig, ScheduleConfig, TrainConfig
from configs.visible import is_unseen


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    shift: float = 0.0
    """Most pixels that a training image is moved by, along either axis; whole pixels unless it is
    turned, scaled or sheared as well."""
    rotate: float = 0.0
    """Most degrees that it is turned by, either way."""
    scale: float = 0.0
    """Most that either side is stretched or shrunk by, as a fraction."""
    shear: float = 0.0
    """Most that it is slanted by: columns moved per row."""
    flip: float = 0.0
    """Probability that left and right change places."""
    mixup: float = 0.0
    """Blend pairs of samples and of their classes in proportions from Beta(mixup, mixup)."""
    cutmix: float = 0.0
    """Paste a box of another image, its area from Beta(cutmix, cutmix), and mix the classes."""

    def __post_init__(self) -> None:
        limits = {"shift": 1e4, "rotate": 180, "scale": 0.9, "shear": 10, "flip": 1}
        for key, most in (limits | {"mixup": 100, "cutmix": 100}).items():
            value = getattr(self, key)
            expect(self, f"data.augment.{key}", 0 <= value <= most, f"a number from 0 to {most:g}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    dataset: str = "mnist"
    """Catalogue name (mnist, fashion_mnist, kmnist, emnist_SPLIT, cifar10, cifar100), files of your
    own (idx, image_folder, npy, csv, parquet, huggingface, webdataset, tokens), or an import path
    `package.module:attribute`."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the data set (docs/data.md), or keyword arguments of one by import path."""
    root: str | None = execution(None)
    """Folder that holds the files, directly or in a subfolder named after the data set."""
    download: bool = execution(True)
    """Fetch a catalogue data set that is not on this machine."""
    verify: bool = execution(True)
    """Refuse files whose SHA-256 is not the catalogue's."""
    placement: Literal["auto", "host", "device"] = execution("auto")
    """Keep the data set in host memory or on the device; auto: device if it fits and has no
    workers."""
    workers: int = execution(0)
    """DataLoader worker processes per rank; in-memory data needs none."""
    prefetch_factor: int = execution(2)
    """Micro-batches each worker prepares ahead."""
    collate: str | None = None
    """Import path of a function that makes a batch of a list of samples; `data.collate:pad` pads
    each micro-batch to its longest."""
    order: str | None = None
    """Import path of a function (seed, epoch) that gives the indices of an epoch's samples in their
    order: weighted, balanced, by length; it may ask for data, the training set, too."""
    validation: int | float = 0
    """Samples, or a fraction of them, held out of the training set for everything that chooses:
    best, patience, keep_best, plateau."""
    test: int | float = 0
    """Samples, or a fraction of them, held out of the training set to test on, for data that bring
    no test set."""
    drop_last: bool = False
    """Leave out the last, short global batch of an epoch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random geometry of training images and mixtures of them, on the device."""

    def __post_init__(self) -> None:
        for key in ("validation", "test"):
            amount = getattr(self, key)
            allowed = 0 <= amount < 1 if isinstance(amount, float) else amount >= 0
            expect(self, f"data.{key}", allowed, "a whole number, or a fraction below 1")
        expect(self, "data.workers", self.workers >= 0, "0 or more")
        expect(self, "data.prefetch_factor", self.prefetch_factor >= 1, "1 or more")
        expect(
            self,
            "data.workers",
            not (self.placement == "device" and self.workers),
            "0 with data.placement=device",
            "Data that lives on the device is gathered there: drop the workers or the placement.",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run, from its first weight to its last record."""

    name: str = execution("run")
    """Name of the run; its directory is OUTPUT_DIR/NAME."""
    seed: int = 0
    """Seed of the initial weights, the data order and dropout."""
    deterministic: bool = False
    """Compute with deterministic operations only, so that a GPU gives the same bits from start to
    start; what cannot is refused by name."""
    output_dir: str = execution("runs")
    """Folder of run directories."""
    data: DataConfig = field(default_factory=DataConfig)
    """What to train on and where it lies."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned: loss and metrics."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The learning rate as a function of the step."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch and regularisation of training."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Number formats."""
    compile: CompileConfig = field(default_factory=CompileConfig, metadata=EXECUTION)
    """torch.compile."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Ranks, devices and the reduction of gradients."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=EXECUTION)
    """When to save and what to continue from."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig, metadata=EXECUTION)
    """Evaluation on the test set."""
    logging: LoggingConfig = field(default_factory=LoggingConfig, metadata=EXECUTION)
    """What is recorded and shown."""
    profile: ProfileConfig = field(default_factory=ProfileConfig, metadata=EXECUTION)
    """Where the time of a step goes."""
    dry_run: DryRunConfig = field(default_factory=DryRunConfig, metadata=EXECUTION)
    """A report about the run instead of the run."""

    def __post_init__(self) -> None:
        expect(
            self,
            "name",
            bool(self.name) and "/" not in self.name and self.name not in (".", ".."),
            "a plain folder name",
            "Use --output_dir for the folder above it.",
        )
        for key in ("name", "output_dir", "data.root"):
            value = (self.data.root or "") if key == "data.root" else getattr(self, key)
            if any(map(is_unseen, value)):
                raise InputError(key, given=value, expected="no control characters in it")
        expect(self, "output_dir", bool(self.output_dir), "a folder")
        expect(self, "seed", 0 <= self.seed < 2**63, "a whole number from 0 to 2**63 - 1")
        expect(
            self.compile,
            "compile.backward",
            self.compile.backward != "explicit" or self.parallel.engine == "native",
            "auto or autograd with parallel.engine=accelerate",
            "Passes that are written out are the native engine's.",
        )
        expect(
            self.compile,
            "compile.mode",
            not (self.deterministic and self.compile.mode.startswith("max-autotune")),
            "default or reduce-overhead with deterministic=true",
            "max-autotune chooses kernels by timing them, so another start may choose others.",
        )
        expect(
            self.parallel,
            "parallel.compression",
            self.parallel.compression != "powersgd" or self.precision.dtype != "fp16",
            "none, bf16 or fp16 with precision.dtype=fp16",
            "PowerSGD would feed back the infinite gradients of a step that fp16 skips.",
        )
        if self.parallel.reduction == "exact":
            shards = self.parallel.shards
            for number, size in enumerate(self.train.batch_sizes):
                expect(
                    self.train,
                    "train.batch_schedule" if number else "train.global_batch_size",
                    size % shards == 0,
                    f"a multiple of parallel.shards={shards} under exact reduction",
                    "Change either one.",
                )
