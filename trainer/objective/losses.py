"""Losses, summed over the samples of a batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from data.collate import IGNORED
from data.structures import fields_of, is_record, outline, tensors


class Unsummed(NamedTuple):
    """A loss that is summed by whoever knows how many samples it is of: lists of targets do not
    tell."""

    value: Tensor
    """The mean over the batch, a scalar, or the losses of its samples or outputs, `(B, ...)`."""

    def sum(self, size: int) -> Tensor:
        """Over the samples of a batch, of which there are `size`."""
        if self.value.dim() == 0:
            return self.value * size
        return self.value.reshape(size, -1).mean(1).sum()


@dataclass(frozen=True)
class Judged:
    """What a model says in an evaluation, and beside it the loss that it gives while it trains."""

    loss: Any
    outputs: Any


Loss = Callable[[Any, Any], "Tensor | tuple[Tensor, Tensor] | Unsummed"]
"""Outputs `(B, ...)` in float32 or float64 and targets `(B, ...)` -> the loss, summed over B; or
that sum and its weight, a scalar that counts what was summed, such as the tokens that are there."""


LOSS_PROTOCOL = (
    "a callable (outputs, targets) -> the loss of every sample or of every output, `(B, ...)`, "
    "its mean over the batch, or a pair (sum, weight) of scalars, whose quotient over the global "
    "batch is minimised; it is called with reduction='none' if it takes that"
)


def summed(loss: Callable[..., Any]) -> Loss:
    """Turn a loss as torch's functions and users write it into one that sums over samples.

    Several outputs of a sample are averaged. A loss that returns one number is taken to be the mean
    over the batch. Of torch's cross-entropy, which may ignore targets and weigh classes, the weight
    is theirs.

    Args:
        loss: See `LOSS_PROTOCOL`.

    Returns:
        `(outputs, targets)` -> the sum over the batch, a scalar, or the sum and its weight. Targets
        that are floats, or have the shape of the outputs, are cast to the type of the outputs.
    """
    if torch_entropy(loss) is not None:
        return weighted_entropy(loss)
    options = {"reduction": "none"} if _takes(loss, "reduction") else {}

    def total(outputs: Any, targets: Any) -> Tensor | tuple[Tensor, Tensor] | Unsummed:
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            targets = _of_type(targets, outputs)
        value = loss(outputs, targets, **options)
        if isinstance(value, tuple):
            total, weight = value
            return total, torch.as_tensor(weight, device=total.device)
        losses = Unsummed(value)
        return losses.sum(len(targets)) if isinstance(targets, Tensor) else losses

    return total


def summed_over(
    value: Tensor | tuple[Tensor, Tensor] | Unsummed, outputs: Any, targets: Any, size: int | None
) -> tuple[Tensor, Tensor | None]:
    """The sum that a `Loss` gave of a batch, and its weight if it gave one.

    Args:
        value: What it gave.
        outputs: Of the model.
        targets: Of the batch.
        size: Its samples; None: as many as the first tensor of the targets has rows.
    """
    if isinstance(value, Unsummed):
        return value.sum(len(next(tensors((targets, outputs)))) if size is None else size), None
    return value if isinstance(value, tuple) else (value, None)


def _of_type(targets: Tensor, outputs: Tensor) -> Tensor:
    same = targets.is_floating_point() or outputs.shape == targets.shape
    return targets.to(outputs.dtype) if same else targets


ENTROPIES = (F.cross_entropy, F.nll_loss)


def torch_entropy(loss: Callable[..., Any]) -> Callable[..., Tensor] | None:
    """The function of torch's that a loss is or calls, if that averages over a weight."""
    if isinstance(loss, nn.CrossEntropyLoss):
        return F.cross_entropy
    if isinstance(loss, nn.NLLLoss):
        return F.nll_loss
    return next((function for function in ENTROPIES if function is loss), None)


def weighted_entropy(loss: Any) -> Loss:
    """Cross-entropy as torch averages it: over the weights of the targets that are not ignored."""
    function = torch_entropy(loss)
    assert function is not None
    ignored = getattr(loss, "ignore_index", IGNORED)
    options: dict[str, Any] = {"reduction": "sum"}
    if hasattr(loss, "label_smoothing"):
        options["label_smoothing"] = loss.label_smoothing

    def total(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = logits_of(outputs)
        if isinstance(loss, nn.Module):
            loss.to(outputs.device)
        weight = getattr(loss, "weight", None)
        weight = None if weight is None else weight.to(outputs)
        if targets.is_floating_point():  # probabilities: every sample counts once
            value = function(outputs, targets.to(outputs.dtype), weight=weight, **options)
            return value, value.new_tensor(outputs.numel() / outputs.shape[1])
        value = function(outputs, targets, weight=weight, ignore_index=ignored, **options)
        there = targets != ignored
        if weight is None:
            return value, there.sum()
        return value, (weight[targets.where(there, 0)] * there).sum()

    return total


def logits_of(outputs: Any) -> Tensor:
    """The outputs, or the part of them that is called `logits`, as transformers calls it.

    Raises:
        InputError: If there is no such part: a model may give something else while it trains.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = fields_of(outputs).get("logits") if is_record(outputs) else None
    if not isinstance(found, Tensor):
        raise InputError(
            "outputs of the model",
            given=f"{type(outputs).__name__} {outline(outputs)}",
            expected="a tensor, or a mapping with the entry `logits`, in training and evaluation",
            remedy="A loss of your own may take them: --task.name loss --task.loss FILE:LOSS.",
        )
    return found


def own_weights(given: str) -> InputError:
    """What is said of a loss that has something to learn."""
    return InputError(
        "task.loss",
        given=given,
        expected="a loss without any: nobody trains or saves them",
        remedy="Make them part of the model, or freeze them with requires_grad_(False).",
    )


def check_mean(values: Sequence[Tensor | tuple[Tensor, Tensor]], counts: Sequence[int]) -> None:
    """Refuse a loss whose one number is no mean over samples; see `not_a_mean`.

    Raises:
        InputError: With what it returned.
    """
    if found := not_a_mean(values, counts):
        pair = isinstance(values[0], tuple)
        raise InputError(
            "task.loss",
            given=f"{'sums of' if pair else 'one number,'} {found}",
            expected="a sum over samples and its weight"
            if pair
            else "the mean over samples, whatever the batch",
            remedy="Return the loss of every sample, (B,) or (B, ...), as reduction='none' gives "
            "it, or a pair (sum, weight): both are added over all ranks and micro-batches. torch's "
            "CrossEntropyLoss, and functools.partial of F.cross_entropy, with weights and "
            "ignore_index are averaged so as they are. A loss that compares samples with each "
            "other: docs/batches.md.",
        )


def not_a_mean(values: Sequence[Tensor | tuple[Tensor, Tensor]], counts: Sequence[int]) -> str:
    """What a loss gave that does not add up; empty if it does.

    A sum, a mean over weights or over tokens that count, and what compares samples with each other
    would each be learned with another weight on another number of ranks, and recorded so.

    Args:
        values: Sums over some samples, over a first part of them, and over the rest, or pairs of
            such sums and their weight.
        counts: How many samples each.
    """
    whole, *parts = (
        [float(part) for part in (value if isinstance(value, tuple) else (value,))]
        for value in values
    )
    for total, *summands in zip(whole, *parts, strict=True):
        if not math.isfinite(total) or math.isclose(
            total, sum(summands), rel_tol=1e-3, abs_tol=1e-6
        ):
            continue
        found = [float(value[0]) / n for value, n in zip((whole, *parts), counts, strict=True)]
        return (
            f"{found[0]:.4g}{' each' if len(whole) > 1 else ''} for {counts[0]} samples, and "
            f"{found[1]:.4g} and {found[2]:.4g} for {counts[1]} and {counts[2]} of them"
        )
    return ""


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # built into torch
        return False
