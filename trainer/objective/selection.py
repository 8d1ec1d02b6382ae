"""Which of several evaluations is the best one, by one metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from configs.errors import InputError
from trainer.objective.task import Task


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of two evaluations is the better one."""

    metric: str
    """The name of a value that every evaluation reports."""
    higher: bool
    """Whether more of it is better."""
    directions: Mapping[str, bool] = field(default_factory=dict, compare=False)
    """The same of every value that an evaluation reports, for who reads the run."""

    def score(self, values: dict[str, float]) -> float:
        """The metric, negated where less of it is better."""
        value = values[self.metric]
        return value if self.higher else -value

    def improves(self, values: dict[str, float], best: dict[str, float], by: float = 0.0) -> bool:
        """Whether an evaluation beats the best one so far by more than `by`.

        One whose loss or metric is not finite never does, and is beaten by every other.

        Args:
            values: What the evaluation reported, by name.
            best: The same of the best one so far; without the metric, as before the first one.
            by: What must be gained.
        """
        if not self._counts(values):
            return False
        return not self._counts(best) or self.score(values) - self.score(best) > by

    def _counts(self, values: dict[str, float]) -> bool:
        """Accuracies are finite where the loss is not: the largest of NaNs is the first one."""
        if self.metric not in values or not math.isfinite(values.get("loss", 0.0)):
            return False
        return not math.isnan(values[self.metric])


def choose_selection(task: Task, metric: str | None, mode: str) -> Selection:
    """The selection that `evaluate.best` and `evaluate.best_mode` ask for.

    Args:
        task: What an evaluation reports, and which metric it prefers.
        metric: evaluate.best; None: the one that the task prefers.
        mode: evaluate.best_mode: auto, max or min.

    Raises:
        InputError: For a metric that no evaluation reports.
    """
    known = task.names()
    name = metric or task.best
    if name not in known:
        raise InputError("evaluate.best", given=name, expected=f"one of {', '.join(known)}")
    higher = {"auto": known[name], "max": True, "min": False}[mode]
    return Selection(name, higher, known | {name: higher})
