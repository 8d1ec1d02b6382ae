"""What the name of a metric tells: which way is better, on which samples, which one ranks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from configs.errors import InputError
from launch.comparing.run_record import RunRecord

LOWER = re.compile(
    r"loss|error|err|perplexity|ppl|nll|mae|mse|rmse|ece|brier|fid|wer|cer|bits|bpb|bpc|regret|seconds"
)
"""Words in the name of a metric of which less is better."""
QUALITY = {"accuracy": 3, "acc": 3, "f1": 2, "loss": 1}
LAYERS = "gradients/"
"""Prefix of the metrics of one parameter: its NAME/norm and NAME/update_ratio."""
HELD_OUT = {"eval", "test", "val", "valid", "validation", "dev"}
VALIDATION = HELD_OUT - {"eval", "test"}
OURS = ("val", "eval")
"""The groups of this project whose metrics rank."""


def lower_is_better(metric: str, runs: Sequence[RunRecord] = ()) -> bool:
    """Whether less is better: of `eval/loss`, `val_loss` and `error_rate`, but not of `accuracy`.

    The runs tell, or else the words of the name.
    """
    own = metric.rpartition("/")[2]
    for run in runs:
        if own in run.higher_is_better:
            return not run.higher_is_better[own]
    return any(LOWER.fullmatch(word) for word in words_of(metric))


def all_metrics(runs: Sequence[RunRecord]) -> list[str]:
    """Every metric of any run, but for those of single layers."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return [name for name in names if not name.startswith(LAYERS)]


def is_fraction(metric: str) -> bool:
    """Whether it is best read as a percentage."""
    return bool({"accuracy", "acc", "f1"} & set(words_of(metric)))


def is_held_out(metric: str) -> bool:
    return bool(HELD_OUT & set(words_of(metric)))


def words_of(metric: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", metric.lower())


def is_chosen_on(metric: str) -> bool:
    """Whether it is measured on samples that are there to be chosen on."""
    return bool(VALIDATION & set(words_of(metric)))


def selected_on(run: RunRecord) -> str | None:
    """Which samples its best evaluation was chosen on: validation or test; None without any."""
    if any(map(is_chosen_on, run.metrics)):
        return "validation"
    return "test" if any(map(is_held_out, run.metrics)) else None


def default_metric(runs: Sequence[RunRecord]) -> str:
    """What the runs were selected by, of validation samples or else of the test set, if most runs
    have it; else the metric that looks most like `val/accuracy` and that most runs have."""
    names = all_metrics(runs)
    if not names:
        raise InputError("these runs have recorded no metric", expected="at least one number")

    selected = {run.selected_by for run in runs if run.selected_by} or {"accuracy"}
    own = {f"{group}/{name}" for group in OURS for name in selected}

    def preference(name: str) -> tuple[bool, bool, int, int, int, bool]:
        kind = max(QUALITY.get(word, 0) for word in words_of(name))
        split = 2 if is_held_out(name) else 0 if "train" in words_of(name) else 1
        shared = sum(name in run.metrics for run in runs)
        ours = name in own and 2 * shared >= len(runs)
        return ours, kind > 0, split, kind, shared, is_chosen_on(name)

    return max(names, key=preference)
