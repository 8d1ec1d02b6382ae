"""Whether a model suits its task, found out before it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.errors import InputError
from trainer.networks.module_state import evaluating
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
