"""What is learned: the model, what it starts from, which parts of it are trained, and the task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from configs.errors import expect
from configs.fields import execution


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str = "mlp"
    """Registered name (mlp, convnet, resnet9, resnet18, resnet50, vit, gpt), timm/NAME or an
    import path `package.module:attribute`."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model, such as {hidden: [256, 128], dropout: 0.2}."""
    forward: str | None = None
    """Import path of a function (model, batch) -> outputs, for a model that is not called with the
    inputs of a batch by position or by name."""
    weights: str | None = execution(None)
    """What a new run starts from: a file of safetensors or of a state dict, a checkpoint, or a run
    directory (its best checkpoint)."""
    weights_sha256: str | None = None
    """Digest of these weights, which belongs to the run; found if it is left out."""
    weights_partial: list[str] = field(default_factory=list)
    """Patterns of names that are not taken from there, such as [head.*]; all others must fit."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of names of parameters that are never trained, such as [backbone.*]."""
    train_from: dict[str, int] = field(default_factory=dict)
    """Parameters that are trained from an epoch on (counted from 1) and frozen before it, by
    pattern of their names, such as {backbone.*: 3}."""

    def __post_init__(self) -> None:
        expect(
            self,
            "model.weights_sha256",
            self.weights_sha256 is None or self.weights is not None,
            "null without model.weights",
        )
        expect(
            self,
            "model.weights_partial",
            not self.weights_partial or self.weights is not None,
            "none without model.weights",
        )
        expect(
            self,
            "model.train_from",
            all(epoch >= 2 for epoch in self.train_from.values()),
            "{pattern: epoch} with epochs from 2 on",
            "What is not named is trained from the first epoch on.",
        )


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    name: str = "classification"
    """What is learned: classification, multilabel, regression, next_token, loss (what task.loss
    says, and nothing else), model_loss (what the model computes), or an import path."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a task named by import path."""
    loss: str | None = None
    """Import path of a loss (outputs, targets) that replaces the task's own."""
    metrics: list[str] = field(default_factory=list)
    """Import paths of further metrics (protocol: trainer/objective/metrics.py)."""
