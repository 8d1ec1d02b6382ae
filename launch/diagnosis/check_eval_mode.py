"""In evaluation mode a model gives the same answer again, and to each sample by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from data.structures import tensors
from launch.diagnosis.findings import Check, Finding, Level
from launch.diagnosis.subject import Subject

SAMPLES = 64
BATCHES = (slice(1), slice(1, 4), slice(4, None))
"""How they are cut for the second time."""


@torch.no_grad()
def check_eval_mode(subject: Subject) -> list[Finding]:
    """Random outputs would differ between batches as well: then only that is said."""
    found = check_deterministic(subject)
    return [found] if found.needs_attention else [found, check_independent(subject)]


def check_deterministic(subject: Subject) -> Finding:
    """In eval mode the same input gives the same output."""
    model, batch = subject.copy().eval(), subject.batch_of(subject.samples(SAMPLES))
    twice = [list(tensors(subject.outputs(model, batch))) for _ in range(2)]
    apart = max(
        (_distance(first.float(), second.float()) for first, second in zip(*twice, strict=True)),
        default=0.0,
    )
    if apart < 0.02:
        return Check("training", "eval_mode").ok("eval mode gives the same output twice")
    return Check("training", "eval_mode").problem(
        f"eval mode gives outputs that differ by up to {apart:.1%} of the largest",
        "Something random stays on when the model is evaluated or used.",
        "F.dropout(x, p, training=self.training), or nn.Dropout, which follows model.eval()",
    )


def check_independent(subject: Subject) -> Finding:
    """In eval mode what is said of a sample does not depend on its neighbours in the batch.

    Logits are compared one by one; other outputs may have lengths that depend on the batch, and of
    them the loss is compared, summed over the samples.
    """
    samples = subject.samples(SAMPLES)
    together = _measured(subject, [samples])
    alone = _measured(subject, [samples[part] for part in BATCHES if samples[part]])
    what = "the output" if subject.tells_classes else "the loss"
    apart = _distance(together, alone)
    if apart < 0.02:
        seen = f"{what} of a sample does not depend on the rest of its batch"
        return Check("training", "independent_samples").ok(seen)
    level: Level = "warning" if subject.task.takes_targets else "problem"
    return Check("training", "independent_samples").judge(
        level,
        f"in eval mode {what} of a sample changes by up to {apart:.1%} of the largest with the "
        "rest of its batch",
        "Samples are mixed: a softmax, norm, mean or view runs over the batch dimension. What a "
        "loss means to compare is the micro-batch then, on any number of ranks another one.",
        "check dim= and view/reshape against transpose/permute; let batch norm track statistics",
    )


def _measured(subject: Subject, batches: list[list[object]]) -> Tensor:
    """Logits of all samples in a row, or the sum of their losses."""
    model = subject.copy().eval()
    found = [subject.batch_of(batch) for batch in batches]
    if not subject.tells_classes:
        losses = [subject.loss(subject.outputs(model, batch), batch)[0] for batch in found]
        return torch.stack(losses).double().sum()
    return torch.cat(
        [subject.task.align(subject.outputs(model, b), b.targets).float() for b in found]
    )


def _distance(first: Tensor, second: Tensor) -> float:
    """The largest difference, as a part of the largest value; rounding in reduced precision is
    coarse."""
    if not first.numel() or torch.equal(first, second):
        return 0.0
    scale = max(float(first.abs().max()), 1e-6)
    apart = float((first - second).abs().max()) / scale
    return apart if torch.isfinite(first).all() else float("inf")
