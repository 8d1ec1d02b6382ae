"""Which token comes next: the loss of a language model, and what it says of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.collate import IGNORED
from data.vocabulary import Vocabulary
from trainer.objective.losses import logits_of
from trainer.objective.task import Task

BYTES = 5
"""Which of the sums of a batch are the bytes: the last of the first metric's, after the loss, its
weight and the count."""
MOST_LOGITS = 1 << 25
"""Logits that an evaluation turns to float64 at once: 256 MiB."""


class TokenCounts:
    """How many tokens were to be told, how many were told right, and the bytes of text they are.

    Args:
        lengths: Bytes of each token, int64 `(vocabulary,)`; None: they are not known.
    """

    width = 3
    higher_is_better = True

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        there = targets != IGNORED
        if self.lengths is not None:
            self.lengths = self.lengths.to(targets.device)
        found = targets.where(there, 0)
        sizes = torch.zeros_like(found) if self.lengths is None else self.lengths[found]
        return torch.stack([there.sum(), right(outputs, targets), (sizes * there).sum()])

    def compute(self, sums: Sequence[float], count: int) -> dict[str, float]:
        tokens, correct, _ = sums
        return {"token_accuracy": correct / max(tokens, 1), "tokens": int(tokens)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken(Task):
    """The task, with what follows from the sums over a whole set."""

    with_bytes: bool
    """Whether the text of the tokens is known, byte by byte."""

    def measure(self, outputs: Any, targets: Any, size: int | None = None) -> Tensor:
        """As `Task.measure`, a part of the samples at a time: float64 takes twice the memory."""
        logits: Tensor = self.align(outputs, targets)
        rows = max(MOST_LOGITS // max(logits[:1].numel(), 1), 1)
        parts = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
        return torch.stack([Task.measure(self, *part, len(part[1])) for part in parts]).sum(0)

    def report(self, sums: Sequence[float]) -> dict[str, float]:
        """With perplexity, exp of the mean loss of a token, and bits per byte of text."""
        values = Task.report(self, sums)
        more = {"perplexity": math.exp(min(values["loss"], 700.0))}
        if self.with_bytes:
            more["bits_per_byte"] = sums[0] / math.log(2) / max(sums[BYTES], 1)
        return values | more

    def names(self) -> dict[str, bool]:
        more = {"perplexity": False} | ({"bits_per_byte": False} if self.with_bytes else {})
        return Task.names(self) | more


def next_token(*, label_smoothing: float = 0.0, vocabulary: Vocabulary | None = None) -> Task:
    """The next token of every place: logits `(B, T, vocabulary)`, targets `(B, T)`, -100 ignored.

    The loss of a batch is the mean over its tokens, whatever the number that each sample has.
    """
    known = None if vocabulary is None else vocabulary.lengths()

    def entropy(outputs: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(
            outputs.flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total, (targets != IGNORED).sum()

    return NextToken(
        name="next_token",
        loss=lambda outputs, targets: entropy(outputs, targets, label_smoothing),
        measured_loss=lambda outputs, targets: entropy(outputs, targets, 0.0),
        score=right,
        score_name="token_accuracy",
        metrics=(TokenCounts(None if known is None else torch.from_numpy(known)),),
        best="loss",
        accepts=lambda target: target.dim() == 1 and not target.is_floating_point(),
        expects="a row of whole numbers, the token that follows each",
        outputs="logits (B, T, size of the vocabulary)",
        align=lambda outputs, targets: logits_of(outputs),
        with_bytes=known is not None,
    )


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many tokens have the largest logit; those that are ignored are never right."""
    return (outputs.argmax(-1) == targets).sum()
