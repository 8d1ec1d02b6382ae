"""In evaluation mode a model gives the same answer again, and to each sample by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from launch.diagnosis.findings import Check, Finding
from launch.diagnosis.subject import Subject, flatten, predict

SAMPLES = 64


def check_eval_mode(subject: Subject) -> list[Finding]:
    """Random outputs would differ between batches as well: then only that is said."""
    found = check_deterministic(subject)
    return [found] if found.needs_attention else [found, check_independent(subject)]


def check_deterministic(subject: Subject) -> Finding:
    """In eval mode the same input gives the same output."""
    first, second = _twice(subject, lambda model, inputs: predict(subject, model, inputs))
    if torch.equal(first, second) or _close(first, second):
        return Check("training", "eval_mode").ok("eval mode gives the same output twice")
    return Check("training", "eval_mode").problem(
        f"eval mode gives outputs that differ by up to {float((first - second).abs().max()):.3g}",
        "Something random stays on when the model is evaluated or used.",
        "F.dropout(x, p, training=self.training), or nn.Dropout, which follows model.eval()",
    )


def check_independent(subject: Subject) -> Finding:
    """In eval mode the output of a sample does not depend on its neighbours in the batch."""
    together, alone = _twice(
        subject, lambda model, inputs: predict(subject, model, inputs), parts=True
    )
    if _close(together, alone):
        seen = "outputs do not depend on the rest of the batch"
        return Check("training", "independent_samples").ok(seen)
    return Check("training", "independent_samples").problem(
        "in eval mode the output of a sample changes by up to "
        f"{float((together - alone).abs().max()):.3g} with the rest of its batch",
        "Samples are mixed: a softmax, norm, mean or view runs over the batch dimension.",
        "check dim= and view/reshape against transpose/permute; let batch norm track statistics",
    )


def _twice(
    subject: Subject, run: Callable[[nn.Module, Tensor], Tensor], parts: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs of some samples, and of the same ones again: in one batch, or in uneven parts."""
    inputs = torch.cat([batch.inputs for batch in flatten(subject.batches)][:SAMPLES])[:SAMPLES]
    model = subject.copy()
    first = run(model, inputs)
    chunks = [inputs[:1], inputs[1:4], inputs[4:]] if parts else [inputs]
    return first, torch.cat([run(model, chunk) for chunk in chunks if len(chunk)])


def _close(first: Tensor, second: Tensor) -> bool:
    """Equal but for rounding, which in reduced precision is coarse."""
    scale = max(float(first.abs().max()), 1e-6)
    return bool(torch.isfinite(first).all()) and float((first - second).abs().max()) < 0.02 * scale
