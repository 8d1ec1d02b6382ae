"""What a task measures of a trained run: any task, any structure of batches."""

from __future__ import annotations

from typing import Any

from data.collate import choose_collate
from data.datasets import Datasets
from data.samples import Example
from launch.using.assess import THESE, check_same_kind, loader_of, origin, samples_of
from launch.using.trained import Trained
from trainer.objective.evaluation import evaluate
from trainer.objective.model_loss import call_for
from trainer.objective.tasks import build_task


def measure(trained: Trained, data: Datasets, split: str) -> dict[str, Any]:
    """The content of evaluation.json: as the run itself evaluates, on one set of `data`.

    Raises:
        InputError: If there is no such set, or it is of another kind than in training.
    """
    config, samples = trained.config, samples_of(data, split)
    check_same_kind(trained.facts, data.facts())
    task = build_task(
        config.task,
        label_smoothing=config.train.label_smoothing,
        vocabulary=trained.facts.vocabulary,
    )
    example = Example(samples[0], choose_collate(config.data))
    result = evaluate(
        trained.module,
        loader_of(trained, samples),
        THESE,
        num_samples=len(samples),
        batch_size=config.evaluate.batch_size,
        normalize=trained.normalize,
        call=call_for(task, trained.module, example, config.model.forward),
        task=task,
        precision=trained.precision,
        runtime=trained.runtime,
        interrupted=lambda: False,
    )
    assert result is not None
    return origin(trained) | {"split": split, "task": task.name, "metrics": result.values}
