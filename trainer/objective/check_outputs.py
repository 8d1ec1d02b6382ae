"""Whether a model suits its task, found out before it trains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from configs.errors import InputError
from data.normalize import Normalize
from trainer.networks.module_state import evaluating
from trainer.objective.losses import check_mean
from trainer.objective.task import Task


def check_outputs(model: nn.Module, inputs: Tensor, target: Tensor, task: Task) -> None:
    """Try one sample, so that a model that does not suit the task is refused before it trains.

    Args:
        model: In any mode; it is evaluated, and left in the mode it was in.
        inputs: One normalised sample as a batch, `(1, *input_shape)`, on the model's device.
        target: Its target as a batch, on any device.
        task: What the outputs are measured with.

    Raises:
        InputError: With the shape of the outputs and what the task expects.
    """
    with evaluating(model), torch.no_grad():
        outputs = model(inputs)
    given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    try:
        task.measure(outputs, target.to(inputs.device))
    except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"outputs of the model for task.name={task.name} ({reason})",
            given=f"{given} for inputs {tuple(inputs.shape)}",
            expected=f"a tensor that suits targets {tuple(target.shape)}: {task.outputs}",
        ) from None


def check_loss(
    model: nn.Module, samples: Sequence[tuple[Tensor, Tensor]], normalize: Normalize, task: Task
) -> None:
    """Try the loss on some samples, whole and in parts; see `check_mean`.

    Args:
        model: In any mode; it is evaluated, and left in the mode it was in.
        samples: Inputs and target of each, as the data set gives them.
        normalize: Turns inputs into what the model takes.
        task: Whose loss it is.

    Raises:
        InputError: If it is no mean over samples.
    """
    device = next(model.parameters()).device
    inputs, targets = (torch.stack(parts).to(device) for parts in zip(*samples, strict=True))
    with evaluating(model), torch.no_grad():
        outputs = model(normalize(inputs))
        check_mean(task.loss, task.align(outputs.float(), targets), targets)
