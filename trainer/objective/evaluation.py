"""Exact evaluation: every sample once, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from data.loading.loader import Loader
from data.loading.order import evaluation_batches
from data.normalize import Normalize
from data.structures import map_tensors
from trainer.networks.calling import Call, call_whole
from trainer.networks.module_state import contiguous, evaluating
from trainer.objective.task import Task
from trainer.ranks.collectives import sum_
from trainer.ranks.precision import Precision
from trainer.ranks.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics over a set that is held out, each from one sum over all of its samples."""

    values: dict[str, float]
    """Mean loss, metrics of the task and count of samples, by name."""

    @property
    def loss(self) -> float:
        """The mean loss over all samples."""
        return self.values["loss"]

    @property
    def count(self) -> int:
        """The number of samples."""
        return int(self.values["count"])

    @property
    def correct(self) -> int:
        """Correct predictions of a classification."""
        return int(self.values["correct"])


@torch.no_grad()  # not inference_mode: FSDP keeps the tensors that it gathers weights into
def evaluate(
    module: nn.Module,
    loader: Loader,
    name: str,
    *,
    num_samples: int,
    batch_size: int,
    normalize: Normalize,
    task: Task,
    precision: Precision,
    runtime: Runtime,
    call: Call = call_whole,
    interrupted: Callable[[], bool],
    run_along: Callable[[nn.Module], None] = lambda module: None,
) -> Evaluation | None:
    """Evaluate the unwrapped module in eval mode, and leave it in the mode it was in.

    Batches are the same on every world size and each rank sends the sums of its own ones, so the
    counts are equal to the last integer and the loss to the last bit. One all-reduce.

    Args:
        module: The raw module, on the device of `runtime`.
        loader: Gives this rank's batches.
        name: Which of the loader's sets: validation or test.
        num_samples: Samples in it.
        batch_size: Samples in a batch; the last one may be shorter.
        normalize: Turns inputs as the data set gives them into what the module takes.
        task: Measures the outputs.
        precision: The type that the module computes in; sums are float64.
        runtime: This rank, within the process group.
        call: Calls the module with inputs, once they are normalised.
        interrupted: Whether to stop; every rank asks before each of its batches, equally often.
        run_along: What a rank does while others evaluate a batch and it has none left.

    Returns:
        The metrics, on every rank the same; None if `interrupted` said so.
    """
    num_batches = len(evaluation_batches(num_samples, batch_size))
    where = counting_device(runtime.device)
    sums = torch.zeros(num_batches, task.width, dtype=torch.float64, device=where)
    batches = loader.evaluation(name, batch_size, runtime.rank, runtime.world_size)
    with evaluating(module), contiguous(module):
        for _ in range(-(-num_batches // runtime.world_size)):
            if interrupted():
                return None
            found = next(batches, None)
            if found is None:
                run_along(module)
                continue
            index, batch = found
            with precision.autocast():
                outputs = call(module, normalize(batch.inputs), batch.targets)
            outputs, targets = map_tensors(lambda t: t.to(where), (outputs, batch.targets))
            sums[index] = task.measure(outputs, targets, batch.size)
    # Float64 holds these integers exactly, and only one rank adds to each row.
    result = Evaluation(task.report(sum_(runtime, sums).sum(0).tolist()))
    assert result.count == num_samples
    return result


def counting_device(device: torch.device) -> torch.device:
    """The device on which float64 is summed: the CPU for Apple's GPUs, which have no float64."""
    return torch.device("cpu") if device.type == "mps" else device
