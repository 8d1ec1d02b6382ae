"""What is kept of a run: its checkpoints, its evaluations and its records.

None of it defines the mathematics of the run: `RunConfig` marks these groups as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.errors import expect


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int | None = None
    """Save every this many optimizer steps, besides the epochs."""
    every_epochs: int | None = 1
    """Save every this many epochs; null: only every_steps and the end."""
    keep: int = 3
    """How many of the newest checkpoints to keep, besides the best."""
    keep_best: int = 1
    """How many of the best checkpoints to keep; above 1 every evaluated step is saved."""
    sharded: bool | Literal["auto"] = "auto"
    """true: every rank writes the part that it holds. false: all is gathered on one rank and
    written as one file. auto: in parts under fsdp from 2 GiB of weights on."""
    upload: str | None = None
    """URL of a folder in object storage, such as s3://bucket/runs, to which checkpoints are copied
    when they are on disk; a run continues from there if that is newer."""
    resume: str = "auto"
    """auto: continue the run in its directory if there is one. never: start afresh. PATH: continue
    from that checkpoint."""

    def __post_init__(self) -> None:
        expect(
            self,
            "checkpoint.every_steps",
            self.every_steps is None or self.every_steps >= 1,
            "1 or more, or null",
        )
        expect(
            self,
            "checkpoint.every_epochs",
            self.every_epochs is None or self.every_epochs >= 1,
            "1 or more, or null",
        )
        expect(
            self,
            "checkpoint.keep",
            self.keep >= 2,
            "2 or more",
            "With one checkpoint, a save that goes wrong would leave none.",
        )
        expect(self, "checkpoint.keep_best", self.keep_best >= 1, "1 or more")
        expect(
            self,
            "checkpoint.upload",
            self.upload is None or "://" in self.upload,
            "a URL such as s3://bucket/runs, or null",
        )
        expect(self, "checkpoint.resume", bool(self.resume), "auto, never or a path")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    every_epochs: int | None = 1
    """Evaluate on the test set every this many epochs, and always at the end; null: only then."""
    batch_size: int = 1000
    """Samples per evaluation batch."""
    best: str | None = None
    """Metric that tells which weights are best; default: the task's (accuracy, f1, or the loss)."""
    best_mode: Literal["auto", "max", "min"] = "auto"
    """Whether more of it is better; auto: as the metric says."""

    def __post_init__(self) -> None:
        expect(
            self,
            "evaluate.every_epochs",
            self.every_epochs is None or self.every_epochs >= 1,
            "1 or more, or null",
        )
        expect(self, "evaluate.batch_size", self.batch_size >= 1, "1 or more")


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
    artifacts: bool = False
    """Upload the best checkpoint as an artifact when the run completes."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    every_steps: int = 50
    """Optimizer steps between two records; only then does the host wait for the device."""
    progress: Literal["auto", "rich", "plain", "off"] = "auto"
    """Live display, plain lines or neither; auto: live on a terminal, plain lines elsewhere."""
    gradients: int | None = None
    """Record gradient norm and update-to-weight ratio of every parameter each this many steps."""
    ranks: bool = False
    """Record time, wait for data and memory of every rank, besides the median and the extremes."""
    hook: str | None = None
    """Import path of a function that is called after records and evaluations with the model, to
    show texts and pictures (docs/your_own.md); it cannot change the run."""
    tensorboard: bool = False
    """Write event files for TensorBoard to RUN/tensorboard."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        expect(self, "logging.every_steps", self.every_steps >= 1, "1 or more")
        expect(
            self,
            "logging.gradients",
            self.gradients is None or self.gradients >= 1,
            "1 or more, or null",
        )
