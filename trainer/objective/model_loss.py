"""The loss that a model computes itself: where it is, what it is a mean over, and how it is found
in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from configs.errors import InputError
from data.collate import IGNORED
from data.samples import Example
from data.structures import fields_of, is_record, outline, tensors
from trainer.networks.calling import Call, choose_call
from trainer.networks.module_state import buffers_kept
from trainer.objective.losses import Judged, Unsummed
from trainer.objective.task import Task
from trainer.ranks.rng import capture_rng, restore_rng, seed_stream

WHERE = (
    "the loss alone, an entry `loss`, several losses by name, which are added, or a tuple with one "
    "scalar in it"
)


def model_loss(*, mean_over: str = "samples") -> Task:
    """The loss that the model computes itself; see `loss_in`.

    The model is called with the targets too: by their name, or after the inputs.

    Args:
        mean_over: What it averages over: `samples`; `targets`, all that are not -100; or
            `next_targets`, the same without the first of each sample, as models do that predict
            the next token and shift targets themselves.
    """
    if mean_over not in ("samples", "targets", "next_targets"):
        raise InputError(
            "task.kwargs.mean_over", given=mean_over, expected="samples, targets or next_targets"
        )

    def loss(outputs: Any, targets: Any) -> tuple[Tensor, Tensor] | Unsummed:
        value = loss_in(outputs)
        if value is None:
            raise InputError("outputs of the model", given=outline(outputs), expected=WHERE)
        if mean_over == "samples":
            return Unsummed(value.float())
        first = next(tensors(targets))
        weight = (first[:, int(mean_over == "next_targets") :] != IGNORED).sum()
        # The mean over nothing is not a number.
        return (value.float() * weight).where(weight > 0, 0.0), weight

    return Task(name="model_loss", loss=loss, outputs=WHERE, takes_targets=True)


def loss_in(outputs: Any) -> Tensor | None:
    """The loss among the outputs of a model; None if there is none.

    The outputs themselves, their entry `loss`, the sum of a mapping of nothing but scalars, as
    torchvision's detectors give it, or the one scalar of a tuple.
    """
    if isinstance(outputs, Judged):
        return loss_in(outputs.loss)
    if isinstance(outputs, Tensor):
        return outputs
    named = fields_of(outputs) if is_record(outputs) else {}
    if isinstance(value := named.get("loss"), Tensor):
        return value
    parts = list(named.values()) if named else outputs if isinstance(outputs, tuple | list) else []
    scalars = [part for part in parts if isinstance(part, Tensor) and not part.dim()]
    if scalars and len(scalars) == (len(parts) if named else 1):
        return torch.stack(scalars).sum() if len(scalars) > 1 else scalars[0]
    return None


def call_for(task: Task, module: nn.Module, example: Example, forward: str | None) -> Call:
    """How this model takes such batches under this task; see `choose_call` and `_judging`."""
    call = choose_call(module, example, forward, with_targets=task.takes_targets)
    return _judging(call) if task.takes_targets else call


def _judging(call: Call) -> Call:
    """The same for a model that may give its loss while it trains only.

    In an evaluation such a model is called twice, for what it says and for its loss.
    """

    def judged(module: nn.Module, inputs: Any, targets: Any) -> Any:
        outputs = call(module, inputs, targets)
        many = isinstance(outputs, Tensor) and outputs.dim() > 1  # logits, or losses of outputs
        if module.training or not (many or loss_in(outputs) is None):
            return outputs
        with _as_in_training(module):
            losses = call(module, inputs, targets)
        if many and isinstance(losses, Tensor) and losses.dim() == outputs.dim():
            return outputs
        return Judged(losses, outputs)

    return judged


@contextmanager
def _as_in_training(module: nn.Module) -> Iterator[None]:
    """Put a module in training mode, with the statistics and without the dropout of an evaluation.

    What it draws is the same each time, and leaves buffers and random generators as they were.
    """
    parts = [p for p in module.modules() if not isinstance(p, _BatchNorm | _DropoutNd)]
    modes = [part.training for part in parts]
    weight = next(module.parameters())
    device = torch.device("cpu") if weight.is_meta else weight.device
    drawn = capture_rng(device)
    seed_stream(0, "loss of an evaluation")
    try:
        with buffers_kept(module):
            for part in parts:
                part.training = True
            yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        restore_rng(drawn, device)
